"""podman with its CNI backend."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from clientkit import CGROUP, Machine, await_, rootfs, veth

from bench.node import Node

PODMAN = "podman --cgroup-manager cgroupfs --events-backend none --runtime /usr/sbin/runc".split()


@pytest.fixture(scope="module", autouse=True)
def network(node: Node, machine: Machine) -> None:
    machine.install("pods", veth(node, "10.9.0.0/24"))
    node.run(["ip", "link", "add", "ctr0", "type", "bridge"])
    rootfs(node.lab.dir / "rootfs")


def podman(machine: Machine, *arguments: str) -> str:
    return machine.run(*PODMAN, *arguments)


@contextmanager
def container(machine: Machine, name: str) -> Iterator[str]:
    """A container on the network; its address."""
    options = f"--network pods --cgroup-parent /{CGROUP} --cap-add NET_RAW"
    # Low limits: a test may run where nobody may raise them.
    limits = "--ulimit nofile=1024:1024 --ulimit nproc=1024:1024"
    root = str(machine.node.lab.dir / "rootfs")
    where = ["--rootfs", root, "/bin/sleep", "1000"]
    podman(machine, "run", "--detach", "--name", name, *options.split(), *limits.split(), *where)
    try:
        (shown,) = json.loads(podman(machine, "container", "inspect", name))
        yield shown["NetworkSettings"]["Networks"]["pods"]["IPAddress"]
    finally:
        podman(machine, "rm", "--force", "--time", "0", name)


def test_two_containers_talk(node: Node, machine: Machine) -> None:
    with container(machine, "one"), container(machine, "two") as address:
        said = podman(machine, "exec", "one", "ping", "-c", "1", "-W", "2", address)
        assert "1 packets received" in said
    await_(lambda: not machine.processes(), "podman has cleaned up behind conmon")
