"""A real guest on a port of a Linux bridge or Open vSwitch; the node sends through the bridge."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.testbed import probes, switch
from bench.testbed.guest import Guest
from bench.testbed.node import Node

HEADERS = 28  # bytes that ping's size does not count: IPv4 and ICMP headers
GATEWAYS = ("10.9.0.1/24", "fd00:9::1/64")
FORMS: dict[str, dict[str, Any]] = {
    "tap, linux": {"mode": "tap", "linux": {"bridge": "vm0", "gateway": True}, "mtu": 9000},
    "tap, ovs": {"mode": "tap", "ovs": {"bridge": "ovs0"}},
    "tc, ovs": {"mode": "tc", "ovs": {"bridge": "ovs0"}},
}
QUEUES = {"tap, linux": 2}


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node("" if switch.missing() else "ovs") as made:
        made.start()
        if made.switch:
            made.switch.add_bridge("ovs0")
            for gateway in GATEWAYS:
                made.run(["ip", "address", "add", gateway, "dev", "ovs0", "nodad"])
            made.run("ip link set ovs0 up".split())
        made.run("ip link add vm0 type bridge".split())
        yield made


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if "ovs" in name and (reason := switch.missing()):
        pytest.skip(reason)
    return name


@contextmanager
def attached(node: Node, pod: Path, conf: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """The result of an ADD, and the device that vmlinkctl describes."""
    subnets = ("10.9.0.0/24", "fd00:9::/64") if "ovs" in conf else ("10.7.0.0/24", "fd00:7::/64")
    ipam = node.ipam(*subnets, routes=("0.0.0.0/0", "::/0"))
    conf = {"cniVersion": "1.1.0", "name": "vm", "type": "vmlink", "ipam": ipam, **conf}
    result = node.call("ADD", conf, "vm", pod).expect()
    try:
        node.call("CHECK", {**conf, "prevResult": result}, "vm", pod).expect()
        yield result, json.loads(node.run(node.ctl("device", "vm")).stdout)[0]
    finally:
        node.call("DEL", conf, "vm", pod).expect()


def test_a_guest_has_what_the_result_says_and_passes_traffic(
    node: Node, pod: Path, form: str
) -> None:
    conf, queues = FORMS[form], QUEUES.get(form, 1)
    with (
        attached(node, pod, {**conf, "queues": queues}) as (result, device),
        Guest.boot(prefix=node.ctl("exec", "vm", "--"), netns=str(node.path), cpus=2) as guest,
    ):
        (nic,) = guest.nics()
        mac = next(i["mac"] for i in result["interfaces"] if i["name"] == "eth0")
        mtu = conf.get("mtu", 1500)
        assert (nic.mac, nic.mtu) == (mac, mtu) == (device["mac"], device["mtu"])
        found = guest.run("ls -d /sys/class/net/eth0/queues/rx-* | wc -l")
        assert int(found) == queues
        guest.configure(nic.name, device["addresses"], [route["gw"] for route in device["routes"]])
        traffic(guest, result, str(node.path), mtu)


def traffic(guest: Guest, result: dict[str, Any], where: str, mtu: int) -> None:
    v4, v6 = (ip["address"].partition("/")[0] for ip in result["ips"])
    for address in (v4, v6):
        assert probes.ping(where, address, 5) > 0
    for ip in result["ips"]:
        guest.run(f"ping -c 2 -W 2 {ip['gateway']}")
    assert probes.ping(where, v4, 3, mtu - HEADERS, dont_fragment=True) > 0
    for reverse in (False, True):
        assert probes.iperf_tcp(guest, v4, where, 1, reverse) > 0.05
        gbps, lost = probes.iperf_udp(guest, v4, where, 1, reverse, rate="20M")
        assert (gbps > 0.01, lost < 20) == (True, True), f"{gbps} Gbit/s, {lost} % lost"
