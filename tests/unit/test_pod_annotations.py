"""kube-ovn's annotations: each field, the error when it is wrong, and what is not there yet."""

from __future__ import annotations

import json

import pytest

from cni.errors import TryAgain
from cni.kubeovn import pod_annotations
from cni.kubeovn.pod_annotations import MODE, Assignment, Wanted
from cni.spec.types import IP, Bandwidth, Route
from tests.unit.purekit import POD_MAC, kubeovn_annotations

ETH0 = Wanted("ovn", "eth0")
NET1 = Wanted("net1.shop.ovn", "net1")
DUAL: dict[str, str | None] = {
    "ip_address": "10.16.0.5, fd00::5",
    "cidr": "fd00::/112,10.16.0.0/16",
    "gateway": "10.16.0.1,fd00::1",
}
DEFAULT, DEFAULT6 = Route("0.0.0.0/0", "10.16.0.1"), Route("::/0", "fd00::1")


def parse(
    wanted: Wanted = ETH0, /, provider: str | None = None, **change: str | None
) -> Assignment:
    return pod_annotations.parse(kubeovn_annotations(provider or wanted.provider, **change), wanted)


def test_one_address() -> None:
    found = parse()
    assert (found.mac, found.logical_switch) == (POD_MAC, "ovn-default")
    assert found.ips == (IP("10.16.0.5/16", "10.16.0.1"),)
    assert found.routes == (DEFAULT,)
    assert (found.vlan, found.bandwidth) == (0, None)


def test_dual_stack_is_matched_by_family() -> None:
    found = parse(**DUAL)
    assert found.ips == (IP("10.16.0.5/16", "10.16.0.1"), IP("fd00::5/112", "fd00::1"))
    assert found.routes == (DEFAULT, DEFAULT6)


def test_a_mac_alone() -> None:
    found = parse(ip_address=None, cidr=None, gateway=None)
    assert (found.mac, found.ips, found.routes) == (POD_MAC, (), ())


@pytest.mark.parametrize(
    ("wanted", "default_route", "expected"),
    [
        (ETH0, None, True),
        (ETH0, "false", False),
        (NET1, None, False),
        (NET1, "true", True),
    ],
)
def test_who_has_the_default_route(
    wanted: Wanted, default_route: str | None, expected: bool
) -> None:
    found = parse(wanted, default_route=default_route)
    assert found.routes == ((DEFAULT,) if expected else ())


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ([{"dst": "10.1.0.0/16", "gw": "10.16.0.9"}], [DEFAULT, Route("10.1.0.0/16", "10.16.0.9")]),
        ([{"dst": "10.1.0.7"}], [DEFAULT, Route("10.1.0.7/32", "10.16.0.1")]),
        ([{"dst": "0.0.0.0/0", "gw": "10.16.0.9"}], [Route("0.0.0.0/0", "10.16.0.9")]),
        ([{"gw": "10.16.0.9"}], [Route("0.0.0.0/0", "10.16.0.9")]),
        ([], [DEFAULT]),
    ],
)
def test_routes(routes: list[dict[str, str]], expected: list[Route]) -> None:
    assert list(parse(routes=json.dumps(routes)).routes) == expected


def test_rates_are_megabits() -> None:
    found = parse(ingress_rate="3", egress_rate="0.5", egress_burst="2").bandwidth
    assert found == Bandwidth(3_000_000, 1_048_576, 500_000, 2_000_000)
    assert parse(ingress_rate="0", egress_burst="7", limit="0").bandwidth is None


def test_a_vlan_is_ours_only_where_no_ovn_has_it() -> None:
    assert parse(vlan_id="7").vlan == 0
    assert parse(NET1, vlan_id="7").vlan == 0
    assert parse(Wanted("net1.shop", "net1"), vlan_id="7").vlan == 7


@pytest.mark.parametrize(
    ("provider", "vm", "expected"),
    [
        ("ovn", None, "web.shop"),
        ("ovn", "box", "box.shop"),
        ("net1.shop.ovn", None, "web.shop.net1.shop.ovn"),
    ],
)
def test_the_logical_port(provider: str, vm: str | None, expected: str) -> None:
    found = parse(Wanted(provider, "eth0"), virtualmachine=vm)
    assert found.port("web", "shop") == expected


def test_a_network_that_a_pod_has_twice() -> None:
    both = kubeovn_annotations(NET1.provider)
    both |= kubeovn_annotations(NET1.provider + ".net2", ip_address="10.16.0.6")
    first = pod_annotations.parse(both, NET1)
    second = pod_annotations.parse(both, Wanted(NET1.provider, "net2"))
    assert [f.ips[0].address for f in (first, second)] == ["10.16.0.5/16", "10.16.0.6/16"]
    assert second.port("web", "shop") == "web.shop.net1.shop.ovn.net2"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        *(({"mac_address": v}, "mac_address") for v in (None, "x", "01:00:00:00:00:01")),
        *(({"ip_address": v}, "ip_address") for v in ("x", "10.16.0.5/16", "10.17.0.5", "fd00::5")),
        *(({"cidr": v}, "cidr") for v in ("x", "10.16.0.5/16")),
        ({"cidr": None}, "ip_address"),
        *(({"gateway": v}, "gateway") for v in ("x", "fe80::1%eth0")),
        *(({"routes": v}, "routes") for v in ('[{"dst": 5}]', '[{"gw": true}]', "[null]")),
        *(({"routes": v}, "routes") for v in ("x", "{}", "[5]", '[{"dst": "x"}]', "[" * 10**5)),
        *(({"routes": v}, "routes") for v in ('[{"dst": "fd00::/64"}]', '[{"to": "x"}]')),
        ({"routes": '[{"dst": "10.1.0.0/16", "gw": "fd00::1"}]'}, "routes"),
        *(({"ingress_rate": v}, "ingress_rate") for v in ("x", "-1", "1e9", "nan")),
        ({"egress_burst": "x"}, "egress_burst"),
        *(({k: "10"}, k) for k in ("latency", "limit", "loss", "jitter")),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, str | None], field: str) -> None:
    with pytest.raises(TryAgain, match=rf"^annotation ovn\.kubernetes\.io/{field}\b.*: expected "):
        parse(**change)


@pytest.mark.parametrize("routes", ["null", "[]", ""])
def test_no_routes(routes: str) -> None:
    assert parse(routes=routes, default_route="false").routes == ()


def test_bits_beyond_a_destinations_prefix_do_not_count() -> None:
    found = parse(routes='[{"dst": "10.9.1.5/16", "gw": "10.16.0.9"}]', default_route="false")
    assert found.routes == (Route("10.9.0.0/16", "10.16.0.9"),)


def test_a_wrong_vlan_is_named() -> None:
    for value in ("x", "4095", "-1"):
        with pytest.raises(TryAgain, match=r"^annotation net1\.shop\.kubernetes\.io/vlan_id: "):
            parse(Wanted("net1.shop", "net1"), vlan_id=value)


@pytest.mark.parametrize(
    ("wanted", "change", "lacks"),
    [
        (ETH0, {}, ""),
        (ETH0, {"allocated": None}, "allocated"),
        (ETH0, {"allocated": "false"}, "allocated"),
        (ETH0, {"routed": None}, "routed"),
        (ETH0, {"routed": None, "default_route": "false"}, ""),
        (NET1, {"routed": None}, ""),
        (NET1, {"routed": None, "default_route": "true"}, "routed"),
        (Wanted("net1.shop", "eth0"), {"routed": None}, ""),
    ],
)
def test_what_is_still_to_come(wanted: Wanted, change: dict[str, str | None], lacks: str) -> None:
    found = pod_annotations.missing(kubeovn_annotations(wanted.provider, **change), wanted)
    assert found.startswith(f"annotation {wanted.provider}.kubernetes.io/{lacks} " if lacks else "")
    assert bool(found) == bool(lacks)


def test_what_is_still_to_come_says_what_is_there() -> None:
    found = pod_annotations.missing(kubeovn_annotations(allocated=None, routed=None), ETH0)
    assert "there is: ip_address, mac_address, cidr, gateway, logical_switch" in found
    assert "none of kube-ovn's" in pod_annotations.missing({}, ETH0)


def test_only_what_is_needed_is_kept() -> None:
    ours = {**kubeovn_annotations(**DUAL), MODE: "tc"}
    assert pod_annotations.needed({**ours, "a.kubernetes.io/b": "c", "d": "e"}) == ours
