"""A real guest behind an attachment: it has what the CNI result says, and traffic passes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.testbed import guest as guests
from bench.testbed import probes
from bench.testbed.guest import Guest
from bench.testbed.node import Node

HEADERS = 28  # bytes that ping's size does not count: IPv4 and ICMP headers


@contextmanager
def attached(
    node: Node, pod: Path, container: str, **keys: Any
) -> Iterator[tuple[Guest, dict[str, Any]]]:
    """A guest configured as the attachment's device says, and the result of its ADD."""
    conf = {
        "cniVersion": "1.1.0",
        "name": container,
        "type": "vmlink",
        "linux": {"bridge": f"vm-{container}", "gateway": True},
        "ipam": node.ipam("10.7.0.0/24", "fd00:7::/64", routes=("0.0.0.0/0", "::/0")),
        **keys,
    }
    result = node.call("ADD", conf, container, pod).expect()
    try:
        device = json.loads(node.run(node.ctl("device", container)).stdout)[0]
        prefix = node.ctl("exec", container, "--")
        with Guest.boot(prefix=prefix, netns=str(node.path), cpus=2) as guest:
            nic = guest.nics()[0].name
            gateways = [route["gw"] for route in device["routes"]]
            guest.configure(nic, device["addresses"], gateways)
            yield guest, result
    finally:
        node.call("DEL", conf, container, pod).expect()
        node.run(["ip", "link", "del", f"vm-{container}"])


def test_a_guest_has_what_the_result_says_and_passes_traffic(node: Node, pod: Path) -> None:
    with attached(node, pod, "plain", mac="02:00:00:00:07:07") as (guest, result):
        nic = guest.nics()[0]
        interface = result["interfaces"][0]
        assert (nic.mac, nic.mtu) == (interface["mac"], interface["mtu"])
        assert nic.mac == "02:00:00:00:07:07"
        v4, v6 = (ip["address"].partition("/")[0] for ip in result["ips"])
        where = str(node.path)
        assert probes.ping(where, v4, 5) > 0
        assert probes.ping(where, v6, 5) > 0
        guest.run(f"ping -c 2 -W 2 {result['ips'][0]['gateway']}")
        for reverse in (False, True):
            assert probes.iperf_tcp(guest, v4, where, 1, reverse) > 0.05
            gbps, lost = probes.iperf_udp(guest, v4, where, 1, reverse, rate="20M")
            assert (gbps > 0.01, lost < 20) == (True, True), f"{gbps} Gbit/s, {lost} % lost"


def test_jumbo_frames_pass_unfragmented(node: Node, pod: Path) -> None:
    with attached(node, pod, "jumbo", mtu=9000) as (guest, result):
        assert guest.nics()[0].mtu == 9000
        address = result["ips"][0]["address"].partition("/")[0]
        where = str(node.path)
        assert probes.ping(where, address, 3, 9000 - HEADERS, dont_fragment=True) > 0
        with pytest.raises(guests.GuestError):
            probes.ping(where, address, 1, 9000 - HEADERS + 1, dont_fragment=True)


def test_several_queues_are_the_guests(node: Node, pod: Path) -> None:
    with attached(node, pod, "queues", queues=2) as (guest, result):
        queues = guest.run("ls -d /sys/class/net/eth0/queues/rx-* | wc -l")
        assert queues.strip() == "2"
        address = result["ips"][0]["address"].partition("/")[0]
        assert probes.iperf_tcp(guest, address, str(node.path), 1, parallel=2) > 0.05


@pytest.mark.parametrize("mode", ["tc", "tap"])
@pytest.mark.parametrize("burst", [64 << 13, 1600 * 8], ids=["64 KiB", "one frame"])
def test_tcp_holds_the_limit_both_ways(node: Node, pod: Path, mode: str, burst: int) -> None:
    """And does not collapse: a frame larger than the bucket is segmented, not dropped."""
    limit = {"ingressRate": 80_000_000, "egressRate": 40_000_000}
    limit |= {"ingressBurst": burst, "egressBurst": burst}
    with attached(node, pod, "limited", mode=mode, bandwidth=limit) as (guest, result):
        address = result["ips"][0]["address"].partition("/")[0]
        for gbps, reverse in ((0.08, False), (0.04, True)):
            found = probes.iperf_tcp(guest, address, str(node.path), 2, reverse)
            assert 0.6 * gbps < found < 1.15 * gbps
