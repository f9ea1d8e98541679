"""A pod with a fixed address is announced to its neighbours before its guest runs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA
from scapy.layers.l2 import ARP, Ether

from bench.testbed.node import Node
from tests.netns.wirelib import POD4, POD6, Attachment, Port, bridged, mastered

FIXED: dict[str, Any] = {"args": {"cni": {"ips": [POD4, POD6]}}}
FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "tc": (bridged, {"mode": "tc"}),
    "veth": (bridged, {"mode": "veth"}),
    "macvtap": (mastered, {}),
}


def heard(port: Port, seconds: float) -> dict[str, str]:
    """The addresses that are announced, and their MACs."""
    found: dict[str, str] = {}
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and len(found) < 2:
        if frame := port.receive_any(left):
            packet = Ether(frame)
            if ARP in packet and packet[ARP].psrc == packet[ARP].pdst:
                found[packet[ARP].psrc] = packet[ARP].hwsrc
            if ICMPv6ND_NA in packet:
                found[packet[ICMPv6ND_NA].tgt] = packet.src
    return found


def mac(attached: Attachment) -> str:
    told: str = attached.result["interfaces"][0]["mac"]
    return told


@pytest.mark.parametrize("name", FORMS)
def test_a_fixed_address_is_announced(node: Node, name: str) -> None:
    form, keys = FORMS[name]
    with form(node, v6=True, **keys, **FIXED) as attached:
        port = attached.port()
        attached.add()
        assert heard(port, 3) == dict.fromkeys((POD4, POD6), mac(attached))


def test_a_neighbour_learns_the_new_mac(node: Node) -> None:
    with bridged(node, args={"cni": {"ips": [POD4]}}) as attached:
        for what in ("address add 10.77.0.77/24 dev wire", f"neighbour add {POD4} dev wire"):
            more = " lladdr 02:00:00:00:00:99 nud reachable" if "neigh" in what else ""
            node.run(["ip", *(what + more).split()], attached.outside)
        attached.add()
        end = time.monotonic() + 3
        known = ""
        while known != mac(attached):
            assert time.monotonic() < end, f"the neighbour still knows {known}"
            told = node.run("ip -json neighbour show dev wire".split(), attached.outside).stdout
            known = json.loads(told)[0].get("lladdr", "")


def test_the_gateways_mac_stays_known_for_kata(node: Node, pod: Path) -> None:
    ipam = node.ipam("10.77.0.0/24", "fd77::/64")
    linux = {"bridge": "brown", "gateway": True}
    conf = {"mode": "veth", "runtime": "kata", "linux": linux, "ipam": ipam, **FIXED}
    attached = Attachment(node, pod, pod, conf)
    with attached.stack:
        try:
            attached.add()
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                told = node.run("ip -json neighbour show nud permanent".split(), pod).stdout
                assert {n["dst"] for n in json.loads(told)} == {"10.77.0.1", "fd77::1"}
                time.sleep(0.05)
        finally:
            attached.delete()
            node.run(["ip", "link", "del", "brown"])


def test_an_address_of_the_pool_is_not_announced(node: Node) -> None:
    with bridged(node, v6=True) as attached:
        port = attached.port()
        attached.add()
        assert heard(port, 1.5) == {}
