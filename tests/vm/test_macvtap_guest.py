"""A real guest behind a macvtap: on a NIC (here a veth), or on another plugin's veth."""

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
from bench.testbed.node import PLUGINS, Node

HEADERS = 28  # bytes that ping's size does not count: IPv4 and ICMP headers
GATEWAYS = ("10.8.0.1/24", "fd00:8::1/64")
MTU = 9000
CONF = {"cniVersion": "1.0.0", "name": "vm", "type": "vmlink", "mode": "macvtap"}


@contextmanager
def on_a_nic(node: Node, pod: Path, outside: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """A configuration, and the namespace to send from: the far end of the NIC's cable."""
    cable = f"type veth peer name wire mtu {MTU} netns {outside}"
    node.run(f"ip link add nic-vm mtu {MTU} {cable}".split())
    node.run("ip link set nic-vm up".split())
    for gateway in GATEWAYS:
        node.run(["ip", "address", "add", gateway, "dev", "wire", "nodad"], outside)
    node.run(["ip", "link", "set", "wire", "up"], outside)
    ipam = node.ipam("10.8.0.0/24", "fd00:8::/64", routes=("0.0.0.0/0", "::/0"))
    try:
        yield {**CONF, "master": "nic-vm", "ipam": ipam}, outside
    finally:
        node.run("ip link del nic-vm".split())


@contextmanager
def chained(node: Node, pod: Path, outside: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """Chained after Debian's ptp, whose CHECK still succeeds; traffic is sent from the node."""
    ipam = node.ipam("10.8.1.0/24", "fd00:8:1::/64", routes=("0.0.0.0/0", "::/0"))
    ptp = {**CONF, "type": "ptp", "mtu": MTU, "ipam": ipam}
    del ptp["mode"]
    made = node.call("ADD", ptp, "vm", pod, plugin=PLUGINS / "ptp").expect()
    conf = {**CONF, "prevResult": made}
    try:
        with attached(node, pod, {**conf, "queues": 2}, "vm"):
            check = {**ptp, "prevResult": made}
            node.call("CHECK", check, "vm", pod, plugin=PLUGINS / "ptp").expect()
        yield conf, node.path
    finally:
        node.call("DEL", ptp, "vm", pod, plugin=PLUGINS / "ptp").expect()


@contextmanager
def attached(
    node: Node, pod: Path, conf: dict[str, Any], container: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The result of an ADD, and the device that vmlinkctl describes."""
    result = node.call("ADD", conf, container, pod).expect()
    try:
        yield result, json.loads(node.run(node.ctl("device", container)).stdout)[0]
    finally:
        node.call("DEL", conf, container, pod).expect()


FORMS = {"master": on_a_nic, "chained": chained}


@pytest.fixture
def outside(node: Node) -> Iterator[Path]:
    path = node.pod()
    yield path
    node.lab.drop(path)


@pytest.mark.parametrize("form", FORMS)
def test_a_guest_has_what_the_result_says_and_passes_traffic(
    node: Node, pod: Path, outside: Path, form: str
) -> None:
    if form == "chained" and not (PLUGINS / "ptp").exists():
        pytest.skip(f"no plugin to chain on: {PLUGINS}/ptp is missing")
    with (
        FORMS[form](node, pod, outside) as (conf, where),
        attached(node, pod, {**conf, "queues": 2}, "vm") as (result, device),
        Guest.boot(prefix=node.ctl("exec", "vm", "--"), netns=str(node.path), cpus=2) as guest,
    ):
        nic = guest.nics()[0]
        mac = next(i["mac"] for i in result["interfaces"] if i["name"] == "eth0")
        assert (nic.mac, nic.mtu) == (mac, MTU) == (device["mac"], device["mtu"])
        guest.configure(nic.name, device["addresses"], [route["gw"] for route in device["routes"]])
        queues = guest.run("ls -d /sys/class/net/eth0/queues/rx-* | wc -l")
        assert queues.strip() == "2"
        traffic(guest, result, str(where))


def traffic(guest: Guest, result: dict[str, Any], where: str) -> None:
    v4, v6 = (ip["address"].partition("/")[0] for ip in result["ips"])
    for address in (v4, v6):
        assert probes.ping(where, address, 5) > 0
        for reverse in (False, True):
            assert probes.iperf_tcp(guest, address, where, 1, reverse, parallel=2) > 0.05
    for reverse in (False, True):
        gbps, lost = probes.iperf_udp(guest, v4, where, 1, reverse, rate="20M")
        assert (gbps > 0.01, lost < 20) == (True, True), f"{gbps} Gbit/s, {lost} % lost"
    guest.run(f"ping -c 2 -W 2 {result['ips'][0]['gateway']}")
    assert probes.ping(where, v4, 3, MTU - HEADERS, dont_fragment=True) > 0
    with pytest.raises(guests.GuestError):
        probes.ping(where, v4, 1, MTU - HEADERS + 1, dont_fragment=True)


def test_two_guests_on_one_nic_reach_each_other(node: Node, pod: Path, outside: Path) -> None:
    """Macvtap's mode bridge does that in the kernel; no frame has to leave the NIC."""
    second, where = node.pod(), str(node.path)
    with (
        on_a_nic(node, pod, outside) as (conf, _),
        attached(node, pod, conf, "vm-a") as (first, _),
        attached(node, second, conf, "vm-b") as (other, _),
        Guest.boot(prefix=node.ctl("exec", "vm-a", "--"), netns=where) as a,
        Guest.boot(prefix=node.ctl("exec", "vm-b", "--"), netns=where) as b,
    ):
        for guest, result in ((a, first), (b, other)):
            guest.configure("eth0", [ip["address"] for ip in result["ips"]], [])
        for guest, result in ((a, other), (b, first)):
            for ip in result["ips"]:
                guest.run(f"ping -c 2 -W 2 {ip['address'].partition('/')[0]}")
    node.lab.drop(second)
