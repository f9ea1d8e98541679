"""A router advertisement from a guest or from its network changes neither node nor pod."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether

from bench.testbed import switch
from bench.testbed.node import Node
from tests.netns.attach_ways import vlan_missing
from tests.netns.wirelib import POD_MAC, Attachment, bridged, chained, mastered, switched

PREFIX = "2001:db8:bad::"
ROUTER = "02:00:00:00:0e:01"
WAIT = 0.4  # seconds; the kernel takes an advertisement as it comes in


def advertisement(mac: str) -> bytes:
    """A router with a prefix for stateless addresses, as ICMPv6 has it (RFC 4861)."""
    prefix = ICMPv6NDOptPrefixInfo(prefix=PREFIX, prefixlen=64, L=1, A=1)
    return bytes(
        Ether(src=mac, dst="33:33:00:00:00:01")
        / IPv6(src="fe80::bad", dst="ff02::1", hlim=255)
        / ICMPv6ND_RA(routerlifetime=1800)
        / ICMPv6NDOptSrcLLAddr(lladdr=mac)
        / prefix
    )


def taken(node: Node, where: Path) -> list[str]:
    """What a namespace has taken from an advertisement: addresses and routes."""
    links = json.loads(node.run(["ip", "-json", "-6", "address"], where).stdout)
    found = [a["local"] for link in links for a in link.get("addr_info", ()) if "local" in a]
    routes = json.loads(node.run(["ip", "-json", "-6", "route"], where).stdout)
    found += [route["dst"] for route in routes if route["protocol"] == "ra"]
    return [each for each in found if each.startswith(PREFIX) or each == "default"]


def accepts(node: Node, where: Path, link: str) -> int:
    path = f"/proc/sys/net/ipv6/conf/{link}/accept_ra"
    return int(node.run(["cat", path], where).stdout)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node("" if switch.missing() else "ovs") as made:
        made.start()
        yield made


@contextmanager
def on_a_new_bridge(node: Node, pod: Path, **keys: Any) -> Iterator[Attachment]:
    """A pod on a bridge that vmlink makes."""
    conf = {"mode": "tc", "linux": {"bridge": "brnew"}, **keys}
    attached = Attachment(node, pod, pod, conf)
    with attached.stack:
        try:
            attached.add()
            yield attached
        finally:
            attached.delete()
            node.run(["ip", "link", "del", "brnew"])


@pytest.mark.parametrize("mode", ["tc", "tap"])
def test_a_bridge_takes_none_from_a_guest(node: Node, pod: Path, mode: str) -> None:
    with on_a_new_bridge(node, pod, mode=mode) as attached:
        guest = attached.guest()
        until = time.monotonic() + 3
        while "fe80::" not in node.run(["ip", "-6", "address", "show", "dev", "brnew"]).stdout:
            assert time.monotonic() < until, "the bridge has no link-local address"
            time.sleep(0.05)
        guest.send(advertisement(POD_MAC))
        time.sleep(WAIT)
        assert taken(node, node.path) == []
        assert accepts(node, node.path, "brnew") == 0


def test_a_pod_of_katas_takes_none_from_the_network(node: Node) -> None:
    """Kata would plug the interface into the VM with the address, which CNI did not promise."""
    with bridged(node, v6=True, mode="veth", runtime="kata") as attached:
        attached.add()
        port = attached.port()
        while "state disabled" in node.run(["bridge", "link"]).stdout:
            time.sleep(0.01)
        port.send(advertisement(ROUTER))
        time.sleep(WAIT)
        assert taken(node, attached.pod) == []


def test_the_host_end_takes_none_where_the_bridge_lets_go(node: Node) -> None:
    with bridged(node, mode="tc") as attached:
        attached.add()
        guest, link = attached.guest(), attached.host_link
        node.run(["ip", "link", "set", link, "nomaster", "addrgenmode", "eui64"])
        node.run(["ip", "link", "set", link, "down"])
        node.run(["ip", "link", "set", link, "up"])
        time.sleep(WAIT)
        guest.send(advertisement(POD_MAC))
        time.sleep(WAIT)
        assert taken(node, node.path) == []


def test_a_container_without_ipam_may_be_configured_by_its_router(node: Node) -> None:
    """CNI promises it nothing, and its stack is its own."""
    with bridged(node, mode="veth", ipam={}) as attached:
        attached.add()
        assert accepts(node, attached.pod, "eth0") == 1


FORMS: dict[str, tuple[Any, dict[str, Any], dict[str, str]]] = {
    "tc": (bridged, {"mode": "tc"}, {"eth0": "pod", "vlt": "pod", "vlh": "host"}),
    "veth": (bridged, {"mode": "veth"}, {"eth0": "pod", "vlh": "host"}),
    "tap": (bridged, {"mode": "tap", "placeholder": True}, {"eth0": "pod", "vlt": "host"}),
    "tc, ovs": (switched, {"mode": "tc"}, {"eth0": "pod", "vlt": "pod", "vlh": "host"}),
    "tap, ovs": (switched, {"mode": "tap"}, {"vlt": "host"}),
    "macvtap": (mastered, {}, {"eth0": "pod"}),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_link_refuses_them(node: Node, name: str) -> None:
    form, keys, links = FORMS[name]
    if "ovs" in name and (reason := switch.missing()):
        pytest.skip(reason)
    with form(node, **keys) as attached:
        attached.add()
        for prefix, where in links.items():
            link = "eth0" if prefix == "eth0" else attached.named(prefix)
            place = attached.pod if where == "pod" else node.path
            assert accepts(node, place, link) == 0, link


def test_the_vlan_interface_of_a_gateway_refuses_them(node: Node, pod: Path) -> None:
    if reason := vlan_missing():
        pytest.skip(reason)
    linux = {"bridge": "brnew", "gateway": True, "vlan": 7}
    with on_a_new_bridge(node, pod, linux=linux, ipam=node.ipam("10.9.0.0/24")):
        assert accepts(node, node.path, "brnew.7") == 0


def test_the_tap_behind_a_foreign_interface_refuses_them(node: Node) -> None:
    for mode in ("tc", "macvtap"):
        with chained(node, mode=mode) as attached:
            attached.add()
            tap = attached.tap if mode == "tc" else attached.macvtap
            assert accepts(node, attached.pod, tap) == 0
            assert accepts(node, attached.pod, "eth0") == 1
