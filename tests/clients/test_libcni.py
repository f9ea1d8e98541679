"""Chains of plugins as libcni runs them, with its rules for the cached result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import Node
from tests.clients.clientkit import veth
from tests.clients.libcni import Network

MAC = "02:00:00:00:09:09"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as made:
        made.start()
        made.run(["ip", "link", "add", "ctr0", "type", "bridge"])
        yield made


def answers(node: Node, result: Any) -> bool:
    address = result["ips"][0]["address"].partition("/")[0]
    return node.run(["ping", "-c", "1", "-W", "2", address], check=False).returncode == 0


@pytest.mark.parametrize("keeps", ["cache", "namespace", "nothing"])
@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_vmlink_first_in_a_chain(
    node: Node, pod: Path, tmp_path: Path, version: str, keeps: str
) -> None:
    first = veth(node, "10.9.0.0/24") | {"capabilities": {"mac": True}}
    tuning = {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}}
    network = Network(node, tmp_path, "chain", version, first, tuning)
    result = network.add("c1", pod, mac=MAC)
    assert MAC in [interface["mac"] for interface in result["interfaces"]]
    assert answers(node, result)
    if version != "0.3.1":  # which has no CHECK
        network.check("c1", pod)
    for _ in range(2):
        if keeps != "cache":
            network.forget("c1")
        network.delete("c1", pod if keeps == "namespace" else None)


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_vmlink_behind_another_plugin(node: Node, pod: Path, tmp_path: Path, version: str) -> None:
    ptp = {"type": "ptp", "ipam": node.ipam("10.4.0.0/24", routes=["0.0.0.0/0"])}
    network = Network(node, tmp_path, "chained", version, ptp, {"type": "vmlink"})
    result = network.add("c1", pod)
    tap = result["interfaces"][-1]["name"]
    assert tap.startswith("vlt")
    network.check("c1", pod)
    network.delete("c1", None)
    assert tap not in node.run(["ip", "link"], pod).stdout
    assert "clsact" not in node.run(["tc", "qdisc"], pod).stdout
    network.delete("c1", pod)  # without CNI_NETNS, ptp leaves its veth in place


def test_check_tells_what_a_chain_has_lost(node: Node, pod: Path, tmp_path: Path) -> None:
    ptp = {"type": "ptp", "ipam": node.ipam("10.4.0.0/24")}
    network = Network(node, tmp_path, "chained", "1.0.0", ptp, {"type": "vmlink"})
    tap = network.add("c1", pod)["interfaces"][-1]["name"]
    node.run(["ip", "link", "del", tap], pod)
    with pytest.raises(AssertionError, match=tap):
        network.check("c1", pod)
    network.delete("c1", pod)


TUNED = {"mtu": 1300, "mac": "02:00:00:00:09:0a"}
MODES: dict[str, Any] = {
    "tc": {"mode": "tc"},
    "tap": {"mode": "tap", "placeholder": True},
    "veth": {"mode": "veth"},
}


# The MAC of an ifb, which the placeholder is where there is no dummy, cannot be changed.
@pytest.mark.parametrize(
    ("mode", "key"), [(m, k) for m in MODES for k in TUNED if (m, k) != ("tap", "mac")]
)
def test_check_tells_of_a_tuning_that_the_guest_does_not_know(
    node: Node, pod: Path, tmp_path: Path, mode: str, key: str
) -> None:
    """A plain container has no guest: there the plugin may change what it likes."""
    first = veth(node, "10.9.0.0/24", **MODES[mode])
    tuning = {"type": "tuning", key: TUNED[key]}
    network = Network(node, tmp_path, "tuned", "1.0.0", first, tuning)
    network.add("c1", pod)
    if mode == "veth":
        network.check("c1", pod)
    else:
        with pytest.raises(AssertionError, match="which the guest has, found"):
            network.check("c1", pod)
    network.delete("c1", pod)


@pytest.mark.parametrize("key", TUNED)
def test_what_tuning_changes_before_vmlink_is_the_guests(
    node: Node, pod: Path, tmp_path: Path, key: str
) -> None:
    ptp = {"type": "ptp", "ipam": node.ipam("10.4.0.0/24")}
    tuning = {"type": "tuning", key: TUNED[key]}
    network = Network(node, tmp_path, "tuned", "1.0.0", ptp, tuning, {"type": "vmlink"})
    network.add("c1", pod)
    network.check("c1", pod)
    (device,) = json.loads(node.run(node.ctl("device", "c1")).stdout)
    assert device[key] == TUNED[key]
    network.delete("c1", pod)


@pytest.mark.parametrize("key", TUNED)
@pytest.mark.parametrize("mode", ["tc", "macvtap"])
def test_check_tells_of_a_tuning_behind_a_chained_vmlink(
    node: Node, pod: Path, tmp_path: Path, mode: str, key: str
) -> None:
    ptp = {"type": "ptp", "ipam": node.ipam("10.4.0.0/24")}
    tuning = {"type": "tuning", key: TUNED[key]}
    vmlink = {"type": "vmlink", "mode": mode}
    network = Network(node, tmp_path, "tuned", "1.0.0", ptp, vmlink, tuning)
    network.add("c1", pod)
    with pytest.raises(AssertionError, match="which the guest has, found"):
        network.check("c1", pod)
    network.delete("c1", pod)
