"""podman with its CNI backend, and with the hook of hooks.d."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bench.testbed.node import BIN, Node
from tests.clients.clientkit import CGROUP, Machine, await_, rootfs, veth

HOOKS = "/opt/hooks.d"
PODMAN = [
    *("podman", "--cgroup-manager", "cgroupfs", "--events-backend", "none"),
    *("--runtime", "/usr/sbin/runc", "--hooks-dir", HOOKS),
]


@pytest.fixture(scope="module", autouse=True)
def network(node: Node, machine: Machine) -> None:
    machine.install("pods", veth(node, "10.9.0.0/24"))
    machine.run(str(BIN / "vmlinkctl"), "install", "hooks", "--hooks-dir", HOOKS)
    node.run(["ip", "link", "add", "ctr0", "type", "bridge"])
    foreign = {"type": "ptp", "ipam": node.ipam("10.4.0.0/24", routes=["0.0.0.0/0"])}
    conflist = {"cniVersion": "1.0.0", "name": "foreign", "plugins": [foreign]}
    machine.path("/etc/cni/net.d/20-foreign.conflist").write_text(json.dumps(conflist))
    rootfs(node.lab.dir / "rootfs")


def podman(machine: Machine, *arguments: str) -> str:
    return machine.run(*PODMAN, *arguments)


@contextmanager
def container(machine: Machine, name: str, *options: str) -> Iterator[dict[str, Any]]:
    """A running container, as podman shows it."""
    # Low limits, because the tests may run where they cannot be raised.
    limits = "--ulimit nofile=1024:1024 --ulimit nproc=1024:1024"
    ours = ["--cgroup-parent", f"/{CGROUP}", *limits.split(), *options]
    root = str(machine.node.lab.dir / "rootfs")
    command = ["--rootfs", root, "/bin/sleep", "1000"]
    podman(machine, "run", "--detach", "--name", name, *ours, *command)
    try:
        yield json.loads(podman(machine, "container", "inspect", name))[0]
    finally:
        podman(machine, "rm", "--force", "--time", "0", name)


def cleaned_up(machine: Machine) -> None:
    """Wait for the cleanup that conmon starts on its own."""
    await_(lambda: not machine.processes(), "podman has cleaned up")


def address(shown: dict[str, Any], network: str) -> str:
    return str(shown["NetworkSettings"]["Networks"][network]["IPAddress"])


def test_two_containers_talk(node: Node, machine: Machine) -> None:
    options = ("--network", "pods", "--cap-add", "NET_RAW")
    with container(machine, "one", *options), container(machine, "two", *options) as two:
        ping = ("ping", "-c", "1", "-W", "2", address(two, "pods"))
        assert "1 packets received" in podman(machine, "exec", "one", *ping)
    cleaned_up(machine)


def test_the_annotation_has_the_hook_make_a_container_ready_for_a_vm(
    node: Node, machine: Machine
) -> None:
    options = ("--network", "foreign", "--annotation", "vmlink.mode=tc")
    with container(machine, "vm", *options) as shown:
        description = machine.path(f"/run/vmlink/devices/{shown['Id']}.json")
        (device,) = json.loads(description.read_text())["devices"]
        assert device["addresses"][0].partition("/")[0] == address(shown, "foreign")
    cleaned_up(machine)
    assert not description.exists()
