"""Hot plug against fake VMMs: the requests, what is undone after a refusal, and the errors."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cni.errors import VmmRefused
from cni.vmm import cloud_hypervisor as clh
from cni.vmm import descriptors, qemu_hotplug
from cni.vmm.device import Device
from tests.unit.fakevmm import Command, FileId, Heard, cloud_hypervisor, qemu

TAP = Device("vlt1", "tap", "02:00:00:00:00:01", 1400, 2, tap="vlt1")
SOCKET = Device("vlu1", "vhostuser", "02:00:00:00:00:01", 1400, 2, path="/run/x/sock")
GONE = {"error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}}
NO = {"error": {"class": "GenericError", "desc": "PCI: no slot is available"}}


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FileId]]:
    """Four files in place of a tap's queues. After the test, those that TAP uses must be closed."""
    opened = [os.memfd_create(f"queue-{n}") for n in range(4)]
    known = [(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in opened]
    monkeypatch.setattr(descriptors, "_open_tap", lambda device: opened[: device.queues])
    monkeypatch.setattr(descriptors, "VHOST_NET", "/nowhere")
    yield known
    for n, fd in enumerate(opened):
        if n < TAP.queues:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
        else:
            os.close(fd)


def test_vhost_net_is_there_when_it_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = tmp_path / "vhost-net"
    monkeypatch.setattr(descriptors, "VHOST_NET", str(node))
    assert descriptors.vhost_refusal() == "No such file or directory"
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(10, 254))  # of no driver
    assert descriptors.vhost_refusal() in ("No such device", "No such device or address")
    assert not descriptors.have_vhost()
    monkeypatch.setattr(descriptors, "VHOST_NET", os.devnull)
    assert descriptors.have_vhost()


def names(heard: Heard[Command]) -> list[str]:
    return [request["execute"] for request in heard.requests][1:]


def ids(heard: Heard[Command], *commands: str) -> list[str]:
    return [r["arguments"]["id"] for r in heard.requests if r["execute"] in commands]


def event(name: str, device: str) -> dict[str, Any]:
    return {"event": name, "data": {"device": device}, "timestamp": {}}


def test_plug_names_the_descriptors_that_it_passes(tmp_path: Path, files: list[FileId]) -> None:
    with qemu(tmp_path / "qmp") as heard:
        qemu_hotplug.plug(str(tmp_path / "qmp"), TAP, 5)
    assert names(heard) == ["getfd", "getfd", "netdev_add", "device_add"]
    assert heard.fds == files[:2]
    assert [r["arguments"]["fdname"] for r in heard.requests[1:3]] == ["vlt1-0", "vlt1-1"]
    assert heard.requests[3]["arguments"]["fds"] == "vlt1-0:vlt1-1"


def test_plug_passes_vhost_net_as_well(
    tmp_path: Path, files: list[FileId], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "VHOST_NET", os.devnull)
    null = Path(os.devnull).stat()
    with qemu(tmp_path / "qmp") as heard:
        qemu_hotplug.plug(str(tmp_path / "qmp"), TAP, 5)
    assert heard.fds == [*files[:2], *[(null.st_dev, null.st_ino)] * 2]
    netdev = heard.requests[5]["arguments"]
    assert (netdev["vhost"], netdev["vhostfds"]) == (True, "vlt1-v0:vlt1-v1")


@pytest.mark.parametrize(
    ("refused", "undone"),
    [
        ("device_add", ["netdev_del", "closefd", "closefd"]),
        ("netdev_add", ["closefd", "closefd"]),
        ("getfd", []),
    ],
)
def test_what_was_done_is_undone_when_qemu_refuses(
    tmp_path: Path, files: list[FileId], refused: str, undone: list[str]
) -> None:
    with (
        qemu(tmp_path / "qmp", {refused: NO}) as heard,
        pytest.raises(VmmRefused, match=f"QEMU refused {refused}: PCI: no slot is available"),
    ):
        qemu_hotplug.plug(str(tmp_path / "qmp"), TAP, 5)
    assert names(heard)[names(heard).index(refused) + 1 :] == undone


def test_vhost_user_is_a_chardev_first(tmp_path: Path) -> None:
    memory = {"query-memdev": {"return": [{"id": "mem", "share": True}]}}
    with qemu(tmp_path / "qmp", {**memory, "device_add": NO}) as heard, pytest.raises(VmmRefused):
        qemu_hotplug.plug(str(tmp_path / "qmp"), SOCKET, 5)
    assert names(heard) == [
        *("query-memdev", "chardev-add", "netdev_add", "device_add"),
        *("netdev_del", "chardev-remove"),
    ]
    assert heard.fds == []


def test_vhost_user_needs_shared_memory(tmp_path: Path) -> None:
    memory = {"query-memdev": {"return": [{"id": "ram", "share": False}]}}
    with qemu(tmp_path / "qmp", memory) as heard, pytest.raises(VmmRefused, match="share=on"):
        qemu_hotplug.plug(str(tmp_path / "qmp"), SOCKET, 5)
    assert names(heard) == ["query-memdev"]


@pytest.mark.parametrize("when", ["device_del", "device_del+"], ids=["before", "after"])
def test_unplug_waits_for_the_event_of_its_own_device(tmp_path: Path, when: str) -> None:
    mine = {when: event("DEVICE_DELETED", "vlt1n")}
    with qemu(tmp_path / "qmp", events=mine) as heard:
        qemu_hotplug.unplug(str(tmp_path / "qmp"), TAP, 5)
    assert ids(heard, "device_del", "netdev_del") == ["vlt1n", "vlt1"]


def test_the_event_of_another_device_does_not_count(tmp_path: Path) -> None:
    other = {"device_del": event("DEVICE_DELETED", "other")}
    with (
        qemu(tmp_path / "qmp", events=other) as heard,
        pytest.raises(VmmRefused, match=r"waited 0.2 s for the guest to let go of vlt1n"),
    ):
        qemu_hotplug.unplug(str(tmp_path / "qmp"), TAP, 0.2)
    assert names(heard) == ["device_del"]


def test_a_guest_that_keeps_it(tmp_path: Path) -> None:
    kept = {"device_del+": event("DEVICE_UNPLUG_GUEST_ERROR", "vlt1n")}
    with (
        qemu(tmp_path / "qmp", events=kept) as heard,
        pytest.raises(VmmRefused, match="does not let go"),
    ):
        qemu_hotplug.unplug(str(tmp_path / "qmp"), TAP, 5)
    assert names(heard) == ["device_del"]


def test_unplug_takes_what_a_former_try_has_left(tmp_path: Path) -> None:
    with qemu(tmp_path / "qmp", {"device_del": GONE}) as heard:
        qemu_hotplug.unplug(str(tmp_path / "qmp"), SOCKET, 5)
    assert names(heard) == ["device_del", "netdev_del", "chardev-remove"]


def test_unplug_of_what_is_not_there(tmp_path: Path) -> None:
    both = {"device_del": GONE, "netdev_del": GONE}
    with qemu(tmp_path / "qmp", both), pytest.raises(VmmRefused, match="Device 'x' not found"):
        qemu_hotplug.unplug(str(tmp_path / "qmp"), TAP, 5)


def test_a_monitor_that_another_client_holds(tmp_path: Path) -> None:
    with (
        qemu(tmp_path / "qmp", greeting=b""),
        pytest.raises(VmmRefused, match="does another client hold the monitor"),
    ):
        qemu_hotplug.unplug(str(tmp_path / "qmp"), TAP, 0.2)


def test_what_is_no_monitor(tmp_path: Path) -> None:
    with (
        qemu(tmp_path / "qmp", greeting=b"220 smtp\r\n"),
        pytest.raises(VmmRefused, match="is not a QMP monitor"),
    ):
        qemu_hotplug.unplug(str(tmp_path / "qmp"), TAP, 5)


def test_cloud_hypervisor_gets_the_descriptors_with_the_request(
    tmp_path: Path, files: list[FileId]
) -> None:
    with cloud_hypervisor(
        tmp_path / "api", "200 OK", b'{"id":"vlt1","bdf":"0000:00:05.0"}'
    ) as heard:
        clh.add(str(tmp_path / "api"), TAP, 5)
    body = {"id": "vlt1", "mac": TAP.mac, "num_queues": 4}
    assert heard.requests == [("PUT /api/v1/vm.add-net HTTP/1.1", "application/json", body)]
    assert heard.fds == files[:2]


def test_cloud_hypervisor_makes_the_socket_of_vhost_user(tmp_path: Path) -> None:
    with cloud_hypervisor(tmp_path / "api") as heard:
        clh.add(str(tmp_path / "api"), SOCKET, 5)
    body = heard.requests[0].body
    assert (body["vhost_user"], body["vhost_mode"]) == (True, "Server")
    assert (body["vhost_socket"], heard.fds) == (SOCKET.path, [])


def test_cloud_hypervisor_takes_it_away(tmp_path: Path) -> None:
    with cloud_hypervisor(tmp_path / "api") as heard:
        clh.remove(str(tmp_path / "api"), TAP, 5)
    ((line, _, body),) = heard.requests
    assert (line, body) == ("PUT /api/v1/vm.remove-device HTTP/1.1", {"id": "vlt1"})


def test_what_cloud_hypervisor_says_is_passed_on(tmp_path: Path, files: list[FileId]) -> None:
    with (
        cloud_hypervisor(tmp_path / "api", "404 Not Found", b'["VM is not created"]'),
        pytest.raises(VmmRefused, match=r"refused vm.add-net: 404 \[.VM is not created.\]"),
    ):
        clh.add(str(tmp_path / "api"), TAP, 5)
