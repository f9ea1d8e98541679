"""Routes of a CNI result: those that make sense are made, and to be there is no error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import Node

GATEWAY4 = "10.9.0.1"
ANY4, ANY6 = "0.0.0.0/0", "::/0"
FAR, ON_LINK = "169.254.1.1", {"dst": "169.254.1.1/32", "scope": 253}
UPLINKS: dict[str, dict[str, Any]] = {
    "tc": {"mode": "tc"},
    "veth": {"mode": "veth"},
    "tap": {"mode": "tap", "placeholder": True},
}


@pytest.fixture(params=UPLINKS)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def routed(
    node: Node, pod: Path, mode: str, *routes: dict[str, Any]
) -> Iterator[list[dict[str, Any]]]:
    """The routes of a pod whose IPAM plugin gave these, as ip(8) shows them; CHECK passes."""
    conf = {
        "cniVersion": "1.1.0",
        "name": "routes",
        "type": "vmlink",
        "linux": {"bridge": "br0"},
        "ipam": {**node.ipam("10.9.0.0/24", "fd00:9::/64"), "routes": list(routes)},
        **UPLINKS[mode],
    }
    try:
        result = node.call("ADD", conf, "box", pod).expect()
        node.call("CHECK", {**conf, "prevResult": result}, "box", pod).expect()
        yield [r for r in shown(node, pod) if r["protocol"] != "kernel"]
    finally:
        node.call("DEL", conf, "box", pod).expect()


def shown(node: Node, pod: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for family in "46":
        command = ["ip", f"-{family}", "-json", "-details", "route", "show", "table", "all"]
        found += json.loads(node.run(command, pod).stdout)
    return [r for r in found if r["type"] == "unicast" and r.get("table") != "local"]


def hops(routes: list[dict[str, Any]], dst: str) -> list[str]:
    """The gateways of a destination, in the kernel's order."""
    return [
        hop.get("gateway", "")
        for route in routes
        if route["dst"] == dst
        for hop in route.get("nexthops", [route])
    ]


def test_two_default_routes(node: Node, pod: Path, mode: str) -> None:
    """The first of the list is the first for the kernel; of IPv6 it makes one of two next hops."""
    given = [{"dst": ANY4}, {"dst": ANY4, "gw": "10.9.0.99"}, {"dst": ANY6}]
    given += [{"dst": ANY6, "gw": "fd00:9::99"}]
    with routed(node, pod, mode, *given) as routes:
        found = hops(routes, "default")
        assert found[:2] == [GATEWAY4, "10.9.0.99"]
        assert sorted(found[2:]) == ["fd00:9::1", "fd00:9::99"]


def test_a_route_that_comes_twice(node: Node, pod: Path, mode: str) -> None:
    given = [{"dst": ANY4}, {"dst": ANY4, "gw": GATEWAY4}, {"dst": ANY6}, {"dst": ANY6}]
    with routed(node, pod, mode, *given) as routes:
        assert sorted(hops(routes, "default")) == [GATEWAY4, "fd00:9::1"]


def test_a_route_to_the_pods_own_subnet_comes_before_the_kernels(
    node: Node, pod: Path, mode: str
) -> None:
    given = [{"dst": "10.9.0.0/24"}, {"dst": ANY4}, {"dst": "fd00:9::/64"}]
    with routed(node, pod, mode, *given) as routes:
        assert hops(routes, "10.9.0.0/24") == [GATEWAY4]
        assert hops(routes, "default") == [GATEWAY4]
        told = node.run(["ip", "route", "get", "10.9.0.77"], pod).stdout
        assert f"via {GATEWAY4} " in told


def test_a_gateway_that_another_route_leads_to(node: Node, pod: Path, mode: str) -> None:
    """The route to the gateway is made first, although it is the last of the list."""
    with routed(node, pod, mode, {"dst": ANY4, "gw": FAR}, ON_LINK) as routes:
        assert hops(routes, "default") == [FAR]
        assert hops(routes, FAR) == [""]


@pytest.mark.parametrize(("dst", "gateway"), [(ANY4, FAR), (ANY6, "fd00:99::1")])
def test_a_gateway_outside_the_subnet_is_on_the_link(
    node: Node, pod: Path, mode: str, dst: str, gateway: str
) -> None:
    with routed(node, pod, mode, {"dst": dst, "gw": gateway}) as (route,):
        assert (route["gateway"], route["flags"]) == (gateway, ["onlink"])


def test_what_a_route_can_have(node: Node, pod: Path, mode: str) -> None:
    given = {"dst": "10.5.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 7, "table": 100}
    with routed(node, pod, mode, given) as (route,):
        assert (route["table"], route["metric"], route["flags"]) == ("100", 7, [])
        assert route["metrics"] == [{"mtu": 1300, "advmss": 1200}]
