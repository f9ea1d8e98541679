"""runtimeConfig as runtimes really write it: without regard to case, as go-cni's structs are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cni.config import network
from cni.config.network import NetConf
from cni.config.uplinks import LinuxUplink
from cni.errors import BadConfig, UnsupportedField
from cni.ipam.hostlocal.config import range_sets, requested
from cni.modes import rules
from cni.spec import request as spec
from cni.spec.capabilities import POD_ANNOTATIONS, spelled
from cni.spec.types import Bandwidth, Request
from tests.unit.purekit import BASE

ENV = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/n"}
MAC = "02:00:00:00:00:07"
# What go-cni's structs become: no json tags, and lists that nobody filled are null.
BANDWIDTH = {"IngressRate": 8_000_000, "IngressBurst": 1_000_000, "EgressRate": 0, "EgressBurst": 0}
RANGES = [
    {"Subnet": "10.1.0.0/24", "RangeStart": "10.1.0.50", "RangeEnd": "", "Gateway": ""},
    {"Subnet": "fd00:1::/64", "RangeStart": "", "RangeEnd": "", "Gateway": "fd00:1::9"},
]
DNS = {"Servers": ["10.0.0.53", "fd00::53"], "Searches": ["shop.local"], "Options": None}


def call(runtime: Any, **conf: Any) -> Request:
    full = {**BASE, "linux": {"bridge": "br0"}, "runtimeConfig": runtime, **conf}
    return spec.parse(ENV, json.dumps(full).encode())


def read(runtime: Any, **conf: Any) -> NetConf:
    return network.parse(call(runtime, **conf), rules())


def test_bandwidth() -> None:
    assert read({"bandwidth": BANDWIDTH}).bandwidth == Bandwidth(8_000_000, 1_000_000)
    assert read({"BandWidth": {"ingressrate": 9, "INGRESSBURST": 8}}).bandwidth == Bandwidth(9, 8)
    with pytest.raises(UnsupportedField, match=r"^runtimeConfig\.bandwidth\.Rate: unknown key"):
        read({"bandwidth": {"Rate": 5}})


@pytest.mark.parametrize("ranges", [RANGES, [[one] for one in RANGES]], ids=["flat", "sets"])
@pytest.mark.parametrize("key", ["ipRanges", "IPRanges"])
def test_ip_ranges(ranges: Any, key: str) -> None:
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}]]}
    conf = call({key: ranges}, ipam=ipam).conf
    sets = [[str(one.address(one.first)) for one in ranges] for ranges in range_sets(conf)]
    assert sets == [["10.1.0.50"], ["fd00:1::1"], ["10.9.0.1"]]
    assert str(range_sets(conf)[1][0].gateway) == "fd00:1::9"


def test_a_range_that_is_none_is_named() -> None:
    conf = call({"IpRanges": [{"Subnet": "10.1.0.1/24"}]}).conf
    with pytest.raises(BadConfig, match=r"^runtimeConfig\.ipRanges\[0\]\.subnet: .* host bits set"):
        range_sets(conf)


def test_dns_comes_before_the_networks() -> None:
    own = {"nameservers": ["192.0.2.1"], "domain": "x"}
    given = {"nameservers": DNS["Servers"], "search": DNS["Searches"]}
    assert read({"dns": DNS}, dns=own).dns == given
    assert read({"DNS": {"servers": ["10.0.0.1"]}}).dns == {"nameservers": ["10.0.0.1"]}
    empty: dict[str, Any] = {"Servers": None, "Searches": []}
    for nothing in ({}, {"dns": None}, {"dns": empty}):
        assert read(nothing, dns=own).dns == own


@pytest.mark.parametrize(
    ("runtime", "own", "where"),
    [
        ({"dns": []}, {}, "runtimeConfig.dns"),
        ({"dns": {"Servers": "10.0.0.1"}}, {}, "runtimeConfig.dns.servers"),
        ({"dns": {"Searches": ["x", 5]}}, {}, r"runtimeConfig.dns.searches\[1\]"),
        ({}, {"nameservers": "10.0.0.1"}, "dns.nameservers"),
        ({}, {"search": [5]}, "dns.search"),
        ({}, {"domain": 5}, "dns.domain"),
        ({}, "x", "dns"),
    ],
)
def test_dns_that_is_none_is_named(runtime: Any, own: Any, where: str) -> None:
    with pytest.raises(BadConfig, match=rf"^{where}: expected"):
        read(runtime, dns=own)


def test_the_other_capabilities() -> None:
    conf = call({"MAC": MAC, "IPs": ["10.1.0.7/24"], "CniDeviceInfoFile": "/x", "Other": {"A": 1}})
    found = network.parse(conf, rules())
    assert (found.mac, found.device_info, found.uplink) == (MAC, "/x", LinuxUplink("br0"))
    assert [str(ip) for ip in requested(conf.conf, {})] == ["10.1.0.7"]
    assert conf.conf["runtimeConfig"]["Other"] == {"A": 1}


def test_what_is_no_object_and_what_is_deep_stays() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    assert spelled(deep) is deep
    assert spelled({"IpRanges": deep})["ipRanges"][0][0] is deep[0][0]
    told = {POD_ANNOTATIONS: {"IngressRate": "1", "ingressRate": "2"}}
    assert spelled(told) == told
