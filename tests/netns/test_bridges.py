"""A Linux bridge and the node as its gateway: what others change is mended by ADD and told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import Ether

from bench.testbed.node import BIN, Node
from cni.kernel.netns import Namespace
from tests.netns.attach_ways import vlan_missing
from tests.netns.wirelib import Port
from tests.waits import until

BRIDGE, ROUTER = "brown", "02:00:00:00:0e:02"
GATEWAYS = ("10.9.0.1/24", "fd00:9::1/64")


def network(node: Node, gateway: bool = True, **keys: Any) -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0",
        "name": "bridges",
        "type": "vmlink",
        "linux": {"bridge": BRIDGE, "gateway": gateway},
        "ipam": node.ipam("10.9.0.0/24", "fd00:9::/64"),
        **keys,
    }


@pytest.fixture(autouse=True)
def _no_bridge(node: Node) -> Iterator[None]:
    yield
    node.run(["ip", "link", "del", BRIDGE], check=False)


@contextmanager
def attached(node: Node, pod: Path, conf: dict[str, Any], box: str) -> Iterator[dict[str, Any]]:
    """The configuration of a CHECK."""
    try:
        result = node.call("ADD", conf, box, pod, box).expect()
        yield {**conf, "prevResult": result}
    finally:
        node.call("DEL", conf, box, pod, box).expect()


def mtu(node: Node) -> int:
    found: int = json.loads(node.run(["ip", "-json", "link", "show", BRIDGE]).stdout)[0]["mtu"]
    return found


@pytest.mark.parametrize(("given", "expected"), [(0, 1500), (9000, 9000)])
def test_one_small_pod_does_not_change_the_bridges_mtu(
    node: Node, pod: Path, given: int, expected: int
) -> None:
    conf = network(node, mtu=given) if given else network(node)
    with attached(node, pod, conf, "large"), attached(node, pod, {**conf, "mtu": 1280}, "small"):
        assert mtu(node) == expected
    with attached(node, pod, network(node), "next") as check:
        assert mtu(node) == check["prevResult"]["interfaces"][0]["mtu"] == expected


def down(node: Node) -> None:
    node.run(["ip", "link", "set", BRIDGE, "down"])


def without_address(node: Node) -> None:
    node.run(["ip", "address", "del", GATEWAYS[0], "dev", BRIDGE])


def no_router(node: Node) -> None:
    node.run(["sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"])


def made_anew(node: Node) -> None:
    node.run(["ip", "link", "del", BRIDGE])
    node.run(["ip", "link", "add", BRIDGE, "type", "bridge"])


CHANGES = {
    down: "expected up, found down",
    without_address: f"expected the gateway's address {GATEWAYS[0]}",
    no_router: "/proc/sys/net/ipv4/ip_forward: expected 1",
    made_anew: "found one that was made since",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_others_change_is_told_by_check_and_mended_by_the_next_add(
    node: Node, pod: Path, change: Any
) -> None:
    conf = network(node)
    with attached(node, pod, conf, "one") as check:
        node.call("CHECK", check, "one", pod, "one").expect()
        change(node)
        failed = node.call("CHECK", check, "one", pod, "one")
        assert (failed.code, CHANGES[change] in failed.out["msg"]) == (104, True), failed.out
        with attached(node, pod, conf, "two") as second:
            node.call("CHECK", second, "two", pod, "two").expect()
            if change is not made_anew:  # the port is gone with the bridge
                node.call("CHECK", check, "one", pod, "one").expect()
            addresses = json.loads(node.run(["ip", "-json", "address", "show", BRIDGE]).stdout)
            assert "UP" in addresses[0]["flags"]
            given = {f"{a['local']}/{a['prefixlen']}" for a in addresses[0]["addr_info"]}
            assert given >= set(GATEWAYS)
            assert node.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout == "1\n"


def flushed(node: Node) -> None:
    node.run(["ip", "address", "flush", "dev", BRIDGE, "scope", "global"])


@pytest.mark.parametrize("change", [down, flushed], ids=lambda change: change.__name__)
def test_status_tells_that_pods_are_cut_off(node: Node, pod: Path, change: Any) -> None:
    conf = network(node)
    node.call("STATUS", conf).expect()  # an ADD makes the bridge
    with attached(node, pod, conf, "one"):
        node.call("STATUS", conf).expect()
        change(node)
        failed = node.call("STATUS", conf)
        assert (failed.code, failed.out["code"], BRIDGE in failed.out["msg"]) == (51, 51, True)
        with attached(node, pod, conf, "two"):
            node.call("STATUS", conf).expect()


def test_status_refuses_what_is_no_bridge(node: Node, pod: Path) -> None:
    node.run(["ip", "link", "add", BRIDGE, "type", "veth", "peer", "name", "far"])
    for verb in ("STATUS", "ADD"):
        failed = node.call(verb, network(node), "one", pod)
        assert failed.code, verb
        assert "linux.bridge: brown is a veth, not a bridge" in failed.out["msg"]


def test_status_tells_that_the_kernel_filters_no_vlans(node: Node) -> None:
    conf = {**network(node), "linux": {"bridge": BRIDGE, "gateway": True, "vlan": 7}}
    answer = node.call("STATUS", conf)
    if vlan_missing():
        assert answer.code == 50
        assert answer.out["msg"].startswith("linux.vlan: cannot add bridge")
    else:
        answer.expect()


def test_status_tells_which_capability_vmlinkd_lacks() -> None:
    with Node() as node:
        without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
        node.start((*without, str(BIN / "vmlinkd")))
        pod = node.pod()
        answer = node.call("STATUS", network(node))
        assert answer.code == 50
        assert "vmlinkd has no CAP_NET_ADMIN; give" in answer.out["msg"]
        assert node.call("ADD", network(node), "one", pod).code == 102
        node.call("DEL", network(node), "one", pod).expect()


@pytest.mark.parametrize("mode", ["tc", "tap", "veth"])
def test_the_node_reaches_an_address_that_comes_back_with_another_mac(
    node: Node, pod: Path, mode: str
) -> None:
    given = {"10.9.0.50": "10.9.0.50/24", "fd00:9::50": "fd00:9::50/64"}
    conf = network(node, mode=mode, args={"cni": {"ips": list(given)}})
    with attached(node, pod, network(node), "other"):
        for ip in given:
            there = ["dev", BRIDGE, "lladdr", "02:00:00:00:0e:03", "nud", "reachable"]
            node.run(["ip", "neighbour", "add", ip, *there])
        with attached(node, pod, conf, "one") as check:
            mac = check["prevResult"]["interfaces"][0]["mac"]
            known = json.loads(node.run(["ip", "-json", "neighbour"]).stdout)
            assert {n["dst"]: n["lladdr"] for n in known if n["dst"] in given} == dict.fromkeys(
                given, mac
            )
            assert len([n for n in known if n["dev"] == BRIDGE and "." in n["dst"]]) == 1


def uplink(node: Node) -> Path:
    """Give the node a NIC; return the namespace in which its router is, with the link `wire`."""
    where = node.pod()
    node.run(f"ip link add uplink type veth peer name wire netns {where}".split())
    node.run("ip link set wire up".split(), where)
    node.run("ip link set uplink up".split())
    return where


def advertise(where: Path) -> None:
    frame = (
        Ether(src=ROUTER, dst="33:33:00:00:00:01")
        / IPv6(src="fe80::2", dst="ff02::1", hlim=255)
        / ICMPv6ND_RA(routerlifetime=1800)
        / ICMPv6NDOptSrcLLAddr(lladdr=ROUTER)
    )
    with Namespace.open(str(where)) as namespace:
        port = Port(namespace, "wire")
    port.send(bytes(frame))
    port.close()


def defaults(node: Node) -> list[str]:
    routes = json.loads(node.run("ip -json -6 route show default".split()).stdout)
    return [route["dev"] for route in routes if route["protocol"] == "ra"]


def test_the_node_keeps_the_default_route_of_its_own_router() -> None:
    """A router drops what routers advertise, unless accept_ra is 2."""
    with Node() as node:
        node.start()
        where, pod = uplink(node), node.pod()

        def learned() -> bool:
            advertise(where)
            return defaults(node) == ["uplink"]

        until(learned)
        with attached(node, pod, network(node), "one"):
            assert node.run(["cat", "/proc/sys/net/ipv6/conf/all/forwarding"]).stdout == "1\n"
            assert defaults(node) == ["uplink"]
            node.run("ip -6 route flush proto ra".split())
            until(learned)
        node.run(["ip", "link", "del", BRIDGE])
