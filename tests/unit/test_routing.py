"""What the routes of a CNI result mean: their gateways, their order, which of them is taken."""

from __future__ import annotations

import pytest

from cni.spec.routing import best, onlink, resolved
from cni.spec.types import IP, Route

IPS = (IP("10.0.0.2/24", "10.0.0.1"), IP("fd00::2/64", "fd00::1"), IP("10.1.0.2/16", "10.1.0.1"))
SUBNETS = [ip.address for ip in IPS]
ANY = "0.0.0.0/0"


def test_each_route_has_the_first_gateway_of_its_family() -> None:
    routes = (Route(ANY), Route("::/0"), Route("10.9.0.0/16", "10.0.0.9"))
    assert [r.gw for r in resolved(routes, IPS)] == ["10.0.0.1", "fd00::1", "10.0.0.9"]


def test_those_without_a_gateway_are_the_first_and_none_comes_twice() -> None:
    link = Route("169.254.1.1/32", scope=253)
    routes = (Route(ANY, "10.0.0.1"), Route(ANY), link, Route(ANY, "10.0.0.9"))
    expected = (link, Route(ANY, "10.0.0.1"), Route(ANY, "10.0.0.9"))
    assert resolved(routes, IPS) == expected


@pytest.mark.parametrize(
    ("gateway", "others", "expected"),
    [
        ("", (), False),
        ("10.0.0.77", (), False),
        ("10.1.2.3", (), False),
        ("10.2.0.1", (), True),
        ("169.254.1.1", (), True),
        ("fd00::77", (), False),
        ("fd00:1::1", (), True),
        ("fe80::1", (), False),
        ("10.0.0.1", (Route(ANY, "10.0.0.1"), Route("10.0.0.0/8", "10.0.0.1")), False),
        ("10.0.0.1", (Route("10.0.0.0/24", "10.0.0.1"),), True),
        ("10.0.0.1", (Route("10.0.0.0/28", "10.0.0.9"),), True),
        ("10.0.0.1", (Route("10.0.0.0/24"), Route("10.0.0.128/25", "10.0.0.9")), False),
    ],
)
def test_a_gateway_that_no_subnet_leads_to(
    gateway: str, others: tuple[Route, ...], expected: bool
) -> None:
    route = Route("::/0" if ":" in gateway else ANY, gateway)
    assert (route in onlink((route, *others), SUBNETS)) == expected


def test_the_best_of_each_destination() -> None:
    first, better = Route(ANY, "10.0.0.1", priority=50), Route(ANY, "10.0.0.9", priority=7)
    equal, other = Route(ANY, "10.0.0.8", priority=7), Route(ANY, "10.0.0.3", table=100)
    net = Route("10.9.0.0/16", "10.0.0.1", table=254)
    assert best((other, first, net, better, equal)) == (better, net)
