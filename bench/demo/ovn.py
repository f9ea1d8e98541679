"""Guests on two nodes of a private OVN, joined by a Geneve tunnel.

On each node a pod is attached by the executed CNI plugin to a port of one logical switch. The
guests ping each other with packets of full size and run iperf3 both ways, and the southbound
database must have their ports on the right chassis.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bench.demo import cells
from bench.progress import StatusLine
from bench.testbed.attachments import boot_guest
from bench.testbed.daemons import SwitchError
from bench.testbed.guest import Guest, GuestError
from bench.testbed.ovn import BRIDGE, MTU, Ovn, missing
from bench.testbed.probes import iperf_tcp

MODES = (("tc", "tap"), ("tap", "vhostuser"))  # on the two nodes
PODS = (("vm1", "02:00:00:00:99:01", "10.99.0.2"), ("vm2", "02:00:00:00:99:02", "10.99.0.3"))
HEADERS = 28  # bytes of IPv4 and ICMP headers, which ping's size leaves out
HEAD = ("NODE 1", "NODE 2", "ADD ms", "CHASSIS", "GUESTS", "PING ms", "TCP to 2", "to 1 Gbit/s", "")


@dataclass
class Row:
    """Two guests. Times in ms, rates in Gbit/s; `skipped` says why there are none."""

    modes: tuple[str, str]
    add_ms: list[float] = field(default_factory=list)
    chassis: list[str] = field(default_factory=list)
    guests: list[dict[str, Any]] = field(default_factory=list)
    ping_ms: float | None = None
    tcp_to_2_gbps: float | None = None
    tcp_to_1_gbps: float | None = None
    ok: bool = False
    skipped: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row as text, below HEAD."""
        guests = ", ".join("{ip} MTU {mtu}".format(**guest) for guest in self.guests)
        lists = (", ".join(map(str, self.add_ms)), ", ".join(self.chassis), guests)
        numbers = (self.ping_ms, self.tcp_to_2_gbps, self.tcp_to_1_gbps)
        verdict = cells.verdict(self.ok, self.skipped)
        return (*self.modes, *map(cells.value, (*lists, *numbers)), verdict)


def rows(seconds: float, status: StatusLine) -> Iterator[Row]:
    """All rows, with an OVN for each, one after the other: DPDK takes a core."""
    for modes in MODES:
        switches = ["dpdk" if mode == "vhostuser" else "ovs" for mode in modes]
        row = Row(modes, skipped=missing("dpdk" in switches))
        if not row.skipped:
            status.show(f"{' and '.join(modes)}: OVN is starting")
            try:
                with Ovn(switches) as ovn:
                    _fill(row, ovn, seconds, status)
            except (AssertionError, GuestError, SwitchError) as e:
                status.say(f"{' and '.join(modes)} failed: {e}")
        yield row
    status.show("everything is removed")


def _fill(row: Row, ovn: Ovn, seconds: float, status: StatusLine) -> None:
    ports = {f"{name}.demo": f"{mac} {ip}" for name, mac, ip in PODS}
    ovn.add_switch("demo", ports)
    with ExitStack() as stack:
        first, second = (_attach(row, ovn, number, stack, status) for number in (0, 1))
        ip_1, ip_2 = (guest["ip"] for guest in row.guests)
        status.show(f"{' and '.join(row.modes)}: traffic")
        row.ping_ms = _ping(first, ip_2, MTU - HEADERS)
        row.tcp_to_2_gbps = round(iperf_tcp(second, ip_2, first, seconds), 2)
        row.tcp_to_1_gbps = round(iperf_tcp(first, ip_1, second, seconds), 2)
        row.chassis = [ovn.claimed(port) for port in ports]
        row.ok = row.chassis == [ovn.chassis(0), ovn.chassis(1)]
        row.ok &= {guest["mtu"] for guest in row.guests} == {MTU}


def _attach(row: Row, ovn: Ovn, number: int, stack: ExitStack, status: StatusLine) -> Guest:
    node, mode, (name, mac, address) = ovn.nodes[number], row.modes[number], PODS[number]
    node.start()
    pod = node.pod(name)
    conf: dict[str, Any] = {"cniVersion": "1.1.0", "name": "demo", "type": "vmlink", "mode": mode}
    conf |= {"ovs": {"bridge": BRIDGE, "ovn": True}, "ipam": node.ipam("10.99.0.0/24"), "mac": mac}
    args = f"K8S_POD_NAME={name};K8S_POD_NAMESPACE=demo;IP={address}"
    added = node.call("ADD", conf, name, pod, CNI_ARGS=args)
    stack.callback(lambda: node.call("DEL", conf, name, pod, CNI_ARGS=args).expect())
    added.expect()
    row.add_ms.append(round(added.ms, 2))
    status.show(f"{mode} on node {number + 1}: a guest is booting")
    guest, device = boot_guest(mode, node, name, stack)
    nic = guest.nics()[0]
    guest.configure(nic.name, device["addresses"])
    ip = device["addresses"][0].partition("/")[0]
    row.guests.append({"ip": ip, "mac": nic.mac, "mtu": nic.mtu})
    return guest


def _ping(guest: Guest, ip: str, size: int) -> float:
    """Median round trip in ms, measured by the guest's busybox."""
    output = guest.run(f"ping -c 5 -W 2 -s {size} {ip}", 20)
    return round(statistics.median(map(float, re.findall(r"time=([\d.]+) ms", output))), 3)
