"""Networks for Kata: modes, refusals, the DAN file, and the socket that kata-go looks for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cni.attach.context import Context, PromisedAddresses
from cni.attach.facts import Facts
from cni.config import network
from cni.errors import AttachmentExists, BadConfig, BadEnvironment, CheckFailed, IOFailure
from cni.ipam import delegate
from cni.modes import rules
from cni.modes.steps import kata
from cni.modes.steps.links import Nic
from cni.modes.steps.vhost_socket import VhostSocket
from cni.spec.types import IP, AttachmentKey, Request, Result, Route
from cni.vmm import dan
from tests.unit.purekit import BASE, KEY, NETNS, context, netconf

IPAM = {"ipam": {"type": "host-local"}}
LINUX, OVS = {"linux": {"bridge": "br0"}, **IPAM}, {"ovs": {"bridge": "br0"}, **IPAM}
GIVEN = Result(
    ips=(IP("10.0.0.2/24", "10.0.0.1"), IP("fd00::2/64")),
    routes=(Route("0.0.0.0/0"), Route("10.9.0.0/16", "10.0.0.9")),
)
SOCKET = "/run/openvswitch/vlu1"
ENTRY = kata.DanEntry("tap0", 1)
OTHER = {"name": "eth9", "device": {"type": "vfio", "pci_device_id": "0000:01:00.0"}}


@pytest.mark.parametrize("runtime", ["kata", "kata-go"])
def test_kata_puts_the_tap_behind_a_veth_itself(runtime: str) -> None:
    assert netconf(**LINUX, runtime=runtime).mode == "veth"
    assert netconf(**LINUX).mode == "tc"


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({**LINUX, "runtime": "runc"}, "runtime: expected one of any, kata, kata-go"),
        ({**LINUX, "runtime": "kata-go", "mode": "tap"}, "runtime: kata-go cannot use mode tap"),
        ({"master": "eth1", "runtime": "kata", "mode": "macvtap"}, "runtime: kata cannot use mode"),
        ({"linux": {"bridge": "br0"}, "runtime": "kata"}, "ipam: required with runtime kata"),
        ({"ovs": {"bridge": "br0"}, "runtime": "kata-go", "mode": "vhostuser"}, "ipam: required"),
        ({"prevResult": {"interfaces": []}, "runtime": "kata"}, "runtime: kata plugs in other"),
        *(
            ({**LINUX, "mode": mode, "tap": {"name": name}}, f"tap.name: {name} is a name of Kata")
            for name in ("tap0_kata", "br12_kata", "ifb0")
            for mode in ("tc", "tap")
        ),
    ],
)
def test_what_kata_cannot_use_is_refused(conf: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        netconf(**conf)


def test_a_tap_may_be_named_nearly_so() -> None:
    for name in ("tap_kata", "tap0_kata1", "ifb01"):
        assert netconf(**LINUX, tap={"name": name}).tap.name == name


@pytest.mark.parametrize("name", ["tap0_kata", "ifb0"])
def test_an_interface_by_a_name_of_katas(name: str) -> None:
    conf = {**BASE, **LINUX, "runtime": "kata"}
    with pytest.raises(BadEnvironment, match=f"CNI_IFNAME: {name}"):
        network.parse(
            Request("ADD", "1.1.0", conf, b"", {}, {}, AttachmentKey("c1", name)), rules()
        )


def test_without_addresses_there_is_the_file() -> None:
    assert netconf(linux={"bridge": "br0"}, runtime="kata", mode="tap").runtime == "kata"


@pytest.fixture
def cx(tmp_path: Path) -> Context:
    made = context(Nic("02:00:00:00:00:01", 1400), VhostSocket(SOCKET), addresses=GIVEN)
    made.node = replace(made.node, dan_dir=tmp_path / "dans", run_dir=tmp_path)
    made.ipam_call = delegate.Call("net", {}, {"CNI_NETNS": NETNS})
    return made


def devices(cx: Context) -> list[dict[str, Any]]:
    text = dan.path_of(cx.node.dan_dir, KEY.container_id).read_text()
    found: list[dict[str, Any]] = json.loads(text)["devices"]
    return found


def put(cx: Context, *entries: dict[str, Any]) -> None:
    cx.node.dan_dir.mkdir(exist_ok=True)
    path = dan.path_of(cx.node.dan_dir, KEY.container_id)
    path.write_text(json.dumps({"netns": NETNS, "devices": list(entries)}))


def test_the_entry_of_vhost_user(cx: Context) -> None:
    kata.DanEntry("", 2).do(cx)
    (entry,) = devices(cx)
    device = {"type": "vhost-user", "path": SOCKET, "queue_num": 2, "queue_size": 0}
    assert entry["device"] == device
    assert [r["dest"] for r in entry["network_info"]["routes"]] == ["", "10.9.0.0/16"]


def test_entries_of_others_stay(cx: Context) -> None:
    put(cx, OTHER)
    ENTRY.do(cx)
    assert [d["name"] for d in devices(cx)] == ["eth9", "eth0"]
    ENTRY.check(cx)
    ENTRY.undo(cx)
    assert devices(cx) == [OTHER]
    with pytest.raises(CheckFailed, match="expected the entry of eth0"):
        ENTRY.check(cx)


@pytest.mark.parametrize("netns", [NETNS, None, "absent"])
def test_the_namespace_of_a_file_is_its_writers(cx: Context, netns: str | None) -> None:
    """Null is the runtime's own namespace, where taps are, and what vmlink writes by itself."""
    path = dan.path_of(cx.node.dan_dir, KEY.container_id)
    put(cx, OTHER)
    told = {"devices": [OTHER]} | ({} if netns == "absent" else {"netns": netns})
    path.write_text(json.dumps(told))
    expected = None if netns == "absent" else netns
    ENTRY.do(cx)
    assert json.loads(path.read_text())["netns"] == expected
    ENTRY.undo(cx)
    assert json.loads(path.read_text()) == {"netns": expected, "devices": [OTHER]}
    path.unlink()
    ENTRY.do(cx)
    assert json.loads(path.read_text())["netns"] is None


def test_the_name_of_another_nic_is_not_taken_from_it(cx: Context) -> None:
    put(cx, {**OTHER, "name": "eth0"})
    with pytest.raises(AttachmentExists, match="has another NIC eth0"):
        ENTRY.do(cx)
    ENTRY.undo(cx)
    assert devices(cx) == [{**OTHER, "name": "eth0"}]


def test_an_entry_of_our_own_is_written_anew(cx: Context) -> None:
    ENTRY.do(cx)
    kata.DanEntry("tap0", 4).do(cx)
    assert [d["device"]["queue_num"] for d in devices(cx)] == [4]


@pytest.mark.parametrize("facts", [True, False], ids=["known", "record lost"])
def test_undo_removes_the_file_with_its_last_entry(cx: Context, facts: bool) -> None:
    ENTRY.do(cx)
    if not facts:
        cx.facts = Facts()
    ENTRY.undo(cx)
    assert list(cx.node.dan_dir.iterdir()) == []
    ENTRY.undo(cx)


@pytest.mark.parametrize("text", ["", "[]", '{"devices": 7}', "{"])
def test_what_is_no_dan_file(cx: Context, text: str) -> None:
    put(cx)
    path = dan.path_of(cx.node.dan_dir, KEY.container_id)
    path.write_text(text)
    with pytest.raises(IOFailure, match="is not a DAN file"):
        ENTRY.do(cx)
    assert path.read_text() == text
    ENTRY.undo(cx)
    assert not path.exists()


def test_a_directory_that_cannot_be_made(cx: Context) -> None:
    cx.node.dan_dir.write_text("")
    with pytest.raises(IOFailure, match="dan_dir: cannot write"):
        ENTRY.do(cx)


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(kata, "_SOCKETS", f"{tmp_path}/vhostuser_{{}}/vhu.sock")
    return tmp_path


FOUND = kata.KataSocketLink("vlu1")


@pytest.mark.parametrize(("first", "name"), [(0, "10.0.0.2"), (1, "fd00::2")])
def test_kata_finds_the_socket_by_the_first_address(
    cx: Context, sockets: Path, first: int, name: str
) -> None:
    cx.facts.put(PromisedAddresses(lambda _: replace(GIVEN, ips=GIVEN.ips[first:])))
    FOUND.do(cx)
    link = sockets / f"vhostuser_{name}" / "vhu.sock"
    assert str(link.readlink()) == SOCKET
    FOUND.check(cx)
    FOUND.do(cx)
    FOUND.undo(cx)
    assert not link.parent.exists()
    with pytest.raises(CheckFailed, match="found nothing"):
        FOUND.check(cx)


@pytest.mark.parametrize("kind", ["another pod's", "a link elsewhere", "a file"])
def test_what_somebody_else_has_there_is_neither_used_nor_removed(
    cx: Context, sockets: Path, kind: str
) -> None:
    place = sockets / "vhostuser_10.0.0.2"
    if kind == "another pod's":
        place.mkdir()
        (place / "vhu.sock").symlink_to("/run/openvswitch/vlu2")
    elif kind == "a file":
        place.touch()
    else:
        (sockets / "elsewhere").mkdir()
        place.symlink_to(sockets / "elsewhere")
    before = set(sockets.rglob("*"))
    with pytest.raises(IOFailure, match=r"vhostuser_10\.0\.0\.2: cannot be made"):
        FOUND.do(cx)
    FOUND.undo(cx)
    assert set(sockets.rglob("*")) == before


def test_what_a_dead_vmlinkd_was_making_is_removed(cx: Context, sockets: Path) -> None:
    (sockets / "vhostuser_vlu1").mkdir()
    FOUND.undo(cx)
    assert list(sockets.iterdir()) == []


def test_without_an_address_there_is_nothing_to_find(cx: Context, sockets: Path) -> None:
    cx.facts.put(PromisedAddresses(lambda _: Result()))
    with pytest.raises(BadConfig, match="ipam: returned no address"):
        FOUND.do(cx)
