"""What succeeds, by verb and version: the results of the client and a real vmlinkd."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.testbed.node import Node
from tests.contract.cnikit import (
    SUBNETS,
    VERSIONS,
    attached,
    chained,
    config,
    fails,
    foreign,
    has,
    links,
    run,
    shown,
    silent,
    valid,
)

# The keys of a result; of an interface and a route, those of all versions and those since 1.1.0.
RESULT = {"cniVersion", "interfaces", "ips", "routes", "dns"}
INTERFACE = ({"name", "mac", "sandbox"}, {"mtu", "socketPath", "pciID"})
ROUTE = ({"dst", "gw"}, {"mtu", "advmss", "priority", "table", "scope"})


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", ["tc", "veth"])
@pytest.mark.parametrize("style", ["plain", "tc-redirect-tap"])
def test_result(node: Node, pod: Path, version: str, mode: str, style: str) -> None:
    if (mode, style) == ("veth", "tc-redirect-tap"):
        conf = config(node, cniVersion=version, mode=mode, resultStyle=style)
        fails(run(node, "ADD", pod, conf), 7, "resultStyle")
        return
    ipam = node.ipam(*SUBNETS)
    ipam["routes"] = [{"dst": "10.7.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 7}]
    conf = config(node, cniVersion=version, mode=mode, resultStyle=style, ipam=ipam)
    with attached(node, pod, conf) as result:
        newest = version == "1.1.0"
        assert set(result) == RESULT
        assert result["cniVersion"] == version
        for entries, (always, later) in (("interfaces", INTERFACE), ("routes", ROUTE)):
            for each in result[entries]:
                assert set(each) <= always | (later if newest else set())
        assert ("mtu" in result["interfaces"][0]) == newest
        assert ("priority" in result["routes"][0]) == newest
        families = [ip.get("version") for ip in result["ips"]]
        assert set(families) == ({"4", "6"} if version < "1" else {None})
        first = result["interfaces"][0]
        assert first["name"] == "eth0"
        assert first["sandbox"] == str(pod)
        assert first["mac"] == shown(node, pod, "eth0")["address"]
        assert [ip["address"][:4] for ip in result["ips"] if ip["interface"] == 0] == [
            "10.9",
            "fd00",
        ]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", ["tc", "veth"])
def test_every_verb(node: Node, pod: Path, version: str, mode: str) -> None:
    conf = config(node, cniVersion=version, mode=mode)
    result = run(node, "ADD", pod, conf).expect()
    again = fails(run(node, "ADD", pod, conf), 101, "c1/eth0")
    assert "DEL" in again
    if has("CHECK", version):
        silent(run(node, "CHECK", pod, {**conf, "prevResult": result}))
    if has("GC", version):
        silent(run(node, "STATUS", pod, conf))
        silent(run(node, "GC", pod, {**conf, **valid(("c1", "eth0"))}))
        assert "eth0" in links(pod)
    silent(run(node, "DEL", pod, {**conf, "prevResult": result}))
    silent(run(node, "DEL", pod, conf))
    assert links(pod) == {"lo"}


def test_runtime_config_as_containerd_writes_it(node: Node, pod: Path) -> None:
    """go-cni's structs have no json tags."""
    runtime = {
        "bandwidth": {
            "IngressRate": 8_000_000,
            "IngressBurst": 1_000_000,
            "EgressRate": 0,
            "EgressBurst": 0,
        },
        "dns": {"Servers": ["10.0.0.53"], "Searches": None, "Options": None},
        "ipRanges": [{"Subnet": "10.8.0.0/24", "RangeStart": "10.8.0.9", "Gateway": ""}],
    }
    with attached(node, pod, config(node, mode="veth", runtimeConfig=runtime)) as result:
        assert next(ip["address"] for ip in result["ips"]) == "10.8.0.9/24"
        assert result["dns"] == {"nameservers": ["10.0.0.53"]}
        shaped = node.run(["tc", "qdisc", "show", "dev", result["interfaces"][1]["name"]]).stdout
        assert "tbf" in shaped
        assert "8Mbit" in shaped


def test_dns_of_the_runtime_in_a_chain(node: Node, pod: Path) -> None:
    foreign(node, pod)
    conf = chained(node, pod, runtimeConfig={"dns": {"servers": ["10.0.0.53"]}})
    with attached(node, pod, conf) as result:
        assert result["dns"] == {"nameservers": ["10.0.0.53"]}
