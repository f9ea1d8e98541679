"""containerd's two ways to call us: ctr, and the Container Runtime Interface."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from bench.testbed.node import BIN, Node
from tests.clients.clientkit import CGROUP, Machine, await_, image, rootfs, veth
from tests.clients.cri import Containerd

LIMITS = {"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "16M"}
# What is wrong with vmlink's part of a chain, so that each ADD is refused.
BROKEN: dict[str, dict[str, Any]] = {
    "key": {"colour": "red"},
    "value": {"mtu": "large"},
    "uplink": {"mode": "tap"},
}


@pytest.fixture(scope="module")
def broken(node: Node, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories with a network each, by the runtime handlers that use them."""
    ptp = {"type": "ptp", "ipam": node.ipam("10.4.1.0/24", routes=["0.0.0.0/0"])}
    home, made = tmp_path_factory.mktemp("broken"), {}
    for kind, keys in BROKEN.items():
        made[kind] = home / kind
        made[kind].mkdir()
        plugins = [ptp, {"type": "vmlink", **keys}]
        conflist = {"cniVersion": "1.0.0", "name": f"broken-{kind}", "plugins": plugins}
        (made[kind] / "10-broken.conflist").write_text(json.dumps(conflist))
    return made


@pytest.fixture(scope="module")
def containerd(
    node: Node,
    machine: Machine,
    broken: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Containerd]:
    machine.install("pods", veth(node, "10.9.0.0/24", capabilities={"bandwidth": True}))
    machine.watch()
    archive = image(tmp_path_factory.mktemp("image"), ["/bin/sleep", "1000000"])
    home = tmp_path_factory.mktemp("vm")
    runtime = home / "vmlink-runc"
    runtime.write_text(f'#!/bin/sh\nexec {BIN}/vmlink-hook wrap -- /usr/sbin/runc "$@"\n')
    runtime.chmod(0o755)
    foreign = {"type": "ptp", "ipam": node.ipam("10.4.0.0/24", routes=["0.0.0.0/0"])}
    network = {"cniVersion": "1.0.0", "name": "foreign", "plugins": [foreign]}
    (home / "10-foreign.conflist").write_text(json.dumps(network))
    with closing(Containerd(machine, archive, runtime, home, broken)) as made:
        # The bridge outlives its pods: make it before a test checks that it leaves nothing behind.
        made.remove_pod(made.run_pod("first"))
        yield made


def answers(node: Node, address: str) -> bool:
    return node.run(["ping", "-c", "1", "-W", "2", address], check=False).returncode == 0


def test_a_sandbox_has_its_address_in_the_status(node: Node, containerd: Containerd) -> None:
    sandbox = containerd.run_pod("pod")
    address = containerd.pod_ip(sandbox)
    assert address.startswith("10.9.0.")
    assert answers(node, address)
    containerd.stop_pod(sandbox)
    containerd.remove_pod(sandbox)


def test_the_wrapper_makes_a_sandbox_of_another_plugin_ready_for_a_vm(
    node: Node, machine: Machine, containerd: Containerd
) -> None:
    sandbox = containerd.run_pod("vm", "vm", mode="tc", queues="2")
    description = machine.path(f"/run/vmlink/devices/{sandbox}.json")
    told = json.loads(description.read_text())
    assert told["exec"][-2:] == [sandbox, "--"]
    (device,) = told["devices"]
    assert (device["kind"], device["queues"]) == ("tap", 2)
    assert device["addresses"][0].partition("/")[0] == containerd.pod_ip(sandbox)
    containerd.stop_pod(sandbox)
    containerd.remove_pod(sandbox)
    assert not description.exists()


def test_a_sandbox_with_limits_comes_and_goes(node: Node, containerd: Containerd) -> None:
    sandbox = containerd.run_annotated("limited", "", LIMITS)
    try:
        assert answers(node, containerd.pod_ip(sandbox))
        qdiscs = json.loads(node.run(["tc", "-json", "qdisc", "show"]).stdout)
        rates = {q["options"]["rate"] for q in qdiscs if q["kind"] == "tbf"}
        assert rates == {8_000_000 // 8, 16_000_000 // 8}
    finally:
        containerd.stop_pod(sandbox)
        containerd.remove_pod(sandbox)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_sandbox_whose_network_is_broken_goes(
    node: Node, machine: Machine, containerd: Containerd, kind: str
) -> None:
    """The plugin before vmlink in the chain gives back what it made, too."""
    with pytest.raises(grpc.RpcError):
        containerd.run_pod("broken", kind)
    while sandbox := containerd.a_pod():  # kubelet removes what could not be made
        containerd.stop_pod(sandbox)
        containerd.remove_pod(sandbox)
    assert machine.last_call()[0] == "DEL"
    assert not list(machine.path("/run/netns").glob("*"))


@pytest.mark.parametrize("turn", range(3))
def test_many_sandboxes_at_once(node: Node, containerd: Containerd, turn: int) -> None:
    with ThreadPoolExecutor(20) as pool:
        sandboxes = list(pool.map(containerd.run_pod, [f"many-{turn}-{n}" for n in range(20)]))
        addresses = list(pool.map(containerd.pod_ip, sandboxes))
        assert len(set(addresses)) == 20
        assert all(pool.map(lambda ip: answers(node, ip), addresses))
        list(pool.map(containerd.stop_pod, sandboxes))
        list(pool.map(containerd.remove_pod, sandboxes))


def test_a_sandbox_whose_namespace_went_away(machine: Machine, containerd: Containerd) -> None:
    sandbox = containerd.run_pod("gone")
    (netns,) = machine.path("/run/netns").iterdir()
    machine.run("umount", f"/run/netns/{netns.name}")
    machine.run("rm", f"/run/netns/{netns.name}")
    containerd.stop_pod(sandbox)
    assert machine.last_call() == ["DEL", ""]
    containerd.remove_pod(sandbox)


def test_ctr(node: Node, machine: Machine, containerd: Containerd) -> None:
    root = rootfs(node.lab.dir / "rootfs")
    options = f"run --rm --cni --cgroup /{CGROUP}/one --rootfs {root} one /bin/sleep 1000"
    running = containerd.spawn_ctr(*options.split())
    (record,) = await_(lambda: json.loads(node.run(node.ctl("list", "--json")).stdout), "attached")
    await_(lambda: "RUNNING" in containerd.ctr("tasks", "ls"), "running")
    assert answers(node, record["addresses"][0].partition("/")[0])
    containerd.ctr("tasks", "kill", "--signal", "KILL", "one")
    running.wait(20)
    assert machine.last_call() == ["DEL", ""]
