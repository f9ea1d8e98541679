"""CNI results in every version: written and read again, keys by version, malformed fields."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cni.errors import BadConfig
from cni.spec import result
from cni.spec.types import IP, Interface, Result, Route

FULL = Result(
    interfaces=(
        Interface("eth0", "02:00:00:00:00:01", 1400, "/run/netns/x"),
        Interface("vhu", socket_path="/run/vhu.sock", pci_id="0000:00:01.0"),
    ),
    ips=(
        IP("10.0.0.2/24", "10.0.0.1", 0),
        IP("fd00::2/64", "fd00::1", 1),
        IP("10.1.0.2/24"),
    ),
    routes=(
        Route("0.0.0.0/0", "10.0.0.1", 1300, 1260, 100, 254, 253),
        Route("::/0", "fd00::1", table=0, scope=0),
        Route("10.9.0.0/16"),
    ),
    dns={"nameservers": ["10.0.0.1"], "search": ["example"]},
)


def only_old(full: Result) -> Result:
    """The same result without what versions before 1.1.0 cannot express."""
    return replace(
        full,
        interfaces=tuple(Interface(i.name, i.mac, sandbox=i.sandbox) for i in full.interfaces),
        routes=tuple(Route(r.dst, r.gw) for r in full.routes),
    )


@pytest.mark.parametrize("version", result.VERSIONS)
@pytest.mark.parametrize("value", [FULL, Result()], ids=["full", "empty"])
def test_round_trip(version: str, value: Result) -> None:
    dumped = json.loads(json.dumps(result.dump(value, version)))
    assert dumped["cniVersion"] == version
    assert result.load(dumped) == (value if version == "1.1.0" else only_old(value))


KEYS: dict[str, tuple[set[str], set[str]]] = {
    "interfaces": ({"name", "mac", "sandbox"}, {"mtu", "socketPath", "pciID"}),
    "ips": ({"address", "gateway", "interface"}, set()),
    "routes": ({"dst", "gw"}, {"mtu", "advmss", "priority", "table", "scope"}),
}


@pytest.mark.parametrize("version", result.VERSIONS)
def test_each_version_has_its_own_keys(version: str) -> None:
    dumped = result.dump(FULL, version)
    for where, (always, new) in KEYS.items():
        expected = always | (new if version == "1.1.0" else set())
        if where == "ips" and version < "1.0.0":
            expected |= {"version"}
        assert set().union(*dumped[where]) == expected
    if version < "1.0.0":
        assert [ip["version"] for ip in dumped["ips"]] == ["4", "6", "4"]


@pytest.mark.parametrize("empty", [{}, {"ips": None, "interfaces": None, "dns": None}])
def test_what_is_absent_is_empty(empty: dict[str, Any]) -> None:
    assert result.load(empty) == Result()


def test_addresses_without_interfaces() -> None:
    """An IPAM plugin returns these. Index 0 is then an interface that the main plugin makes."""
    ips = [{"address": "10.0.0.2/24", "interface": n} for n in (-1, 0)]
    assert [ip.interface for ip in result.load({"ips": ips}).ips] == [None, 0]


@pytest.mark.parametrize(
    ("dst", "network"),
    [("10.0.0.5/8", "10.0.0.0/8"), ("FD00::5/64", "fd00::/64"), ("0.0.0.0/0", "0.0.0.0/0")],
)
def test_bits_beyond_a_destinations_prefix_do_not_count(dst: str, network: str) -> None:
    """The bridge plugin and kube-ovn read it so; the kernel would refuse it."""
    assert result.load({"routes": [{"dst": dst}]}).routes == (Route(network),)


def test_gateways_are_written_as_the_kernel_writes_them() -> None:
    loaded = result.load({"ips": [{"address": "fd00::2/64", "gateway": "FD00:0::1"}]})
    assert loaded.ips[0].gateway == "fd00::1"


CIDRS = ["", "x", "10.0.0.2", "10.0.0.2/33", "10.0.0.2/255.255.255.0", "10.0.0/8", "fd00::2/129", 5]
CIDRS += ["10.0.0.2/\u0662\u0664", "fe80::1%eth0/64"]
ADDRESSES = ["x", "10.0.0.1/24", "10.0.0.256", "fd00::g", 5, "fd00::1", "fe80::1%eth0"]
ROUTE_NUMBERS = ["mtu", "advmss", "priority", "table", "scope"]


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ([], ""),
        ("text", ""),
        *(({key: 5}, f".{key}") for key in ("interfaces", "ips", "routes", "dns")),
        *(({key: [5]}, f".{key}[0]") for key in ("interfaces", "ips", "routes")),
        *(({"ips": [{"address": a}]}, ".ips[0].address") for a in CIDRS),
        *(({"routes": [{"dst": d}]}, ".routes[0].dst") for d in CIDRS),
        ({"ips": [{}]}, ".ips[0].address"),
        ({"routes": [{}]}, ".routes[0].dst"),
        *(
            ({"ips": [{"address": "10.0.0.2/8", "gateway": g}]}, ".ips[0].gateway")
            for g in ADDRESSES
        ),
        *(({"routes": [{"dst": "10.0.0.0/8", "gw": g}]}, ".routes[0].gw") for g in ADDRESSES),
        *(
            ({"ips": [{"address": "10.0.0.2/8", "interface": n}]}, ".ips[0].interface")
            for n in (1, -2, "0", True, 0.0)
        ),
        *(
            ({"interfaces": [{}, {key: []}]}, f".interfaces[1].{key}")
            for key in ("name", "mac", "sandbox", "mtu", "socketPath", "pciID")
        ),
        *(
            ({"routes": [{"dst": "10.0.0.0/8", key: True}]}, f".routes[0].{key}")
            for key in ROUTE_NUMBERS
        ),
        *(
            ({"routes": [{"dst": "10.0.0.0/8", key: n}]}, f".routes[0].{key}")
            for key in ROUTE_NUMBERS
            for n in (-1, 2**32)
        ),
        ({"routes": [{"dst": "10.0.0.0/8", "scope": 256}]}, ".routes[0].scope"),
        ({"interfaces": [{"mtu": -1}]}, ".interfaces[0].mtu"),
        *(({"dns": {key: "x"}}, f".dns.{key}") for key in ("nameservers", "search", "options")),
        ({"dns": {"search": ["\ud800"]}}, ".dns.search"),
        ({"dns": {"domain": 5}}, ".dns.domain"),
    ],
)
def test_a_malformed_field_is_named_by_its_path(data: Any, where: str) -> None:
    with pytest.raises(BadConfig) as error:
        result.load(data, "prevResult")
    assert error.value.msg.startswith(f"prevResult{where}: ")
