"""./run demo --ovn: guests on two nodes of an OVN, joined by a Geneve tunnel.

A private OVN with two nodes; on each a pod, attached by the executed CNI plugin to a port of one
logical switch. The guests ping each other with full packets and pass iperf3 both ways, and the
southbound database is asked which chassis has their ports.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bench.testbed import guest as guests
from bench.testbed import ovn as ovns
from bench.testbed.daemons import SwitchError
from bench.testbed.guest import Guest
from bench.testbed.ovn import BRIDGE, MTU, Ovn
from bench.testbed.ways import boot

PAIRS = (("tc", "tap"), ("tap", "vhostuser"))  # the modes on the two nodes
PODS = (("vm1", "02:00:00:00:99:01", "10.99.0.2"), ("vm2", "02:00:00:00:99:02", "10.99.0.3"))
HEADERS = 28  # bytes that ping's size does not count: IPv4 and ICMP headers
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
        guests = ", ".join("{ip} MTU {mtu}".format(**guest) for guest in self.guests)
        lists = (", ".join(map(str, self.add_ms)), ", ".join(self.chassis), guests)
        numbers = (self.ping_ms, self.tcp_to_2_gbps, self.tcp_to_1_gbps)
        verdict = f"skipped: {self.skipped}" if self.skipped else "ok" if self.ok else "FAILED"
        shown = ("-" if number is None else str(number) for number in numbers)
        return (*self.modes, *(text or "-" for text in lists), *shown, verdict)


def rows(seconds: float, say: Callable[[str], None]) -> Iterator[Row]:
    """An OVN of its own for each pair: DPDK keeps a core for itself."""
    for modes in PAIRS:
        kinds = ["dpdk" if mode == "vhostuser" else "userspace" for mode in modes]
        row = Row(modes, skipped=ovns.missing("dpdk" in kinds))
        if not row.skipped:
            say(f"{' and '.join(modes)}: OVN is starting")
            try:
                with Ovn(kinds) as ovn:
                    _fill(row, ovn, seconds, say)
            except (AssertionError, guests.GuestError, SwitchError) as e:
                say(f"{' and '.join(modes)} failed: {e}\n")
        yield row
    say("everything is given back")


def _fill(row: Row, ovn: Ovn, seconds: float, say: Callable[[str], None]) -> None:
    ports = {f"{name}.demo": f"{mac} {ip}" for name, mac, ip in PODS}
    ovn.add_switch("demo", ports)
    with ExitStack() as stack:
        pair = [_attach(row, ovn, number, stack, say) for number in (0, 1)]
        one, two = (guest["ip"] for guest in row.guests)
        say(f"{' and '.join(row.modes)}: traffic")
        row.ping_ms = _ping(pair[0], two, MTU - HEADERS)
        row.tcp_to_2_gbps = round(guests.iperf_tcp(pair[1], two, pair[0], seconds), 2)
        row.tcp_to_1_gbps = round(guests.iperf_tcp(pair[0], one, pair[1], seconds), 2)
        row.chassis = [ovn.claimed(port) for port in ports]
        row.ok = row.chassis == [ovn.chassis(0), ovn.chassis(1)]
        row.ok &= {guest["mtu"] for guest in row.guests} == {MTU}


def _attach(row: Row, ovn: Ovn, number: int, stack: ExitStack, say: Callable[[str], None]) -> Guest:
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
    say(f"{mode} on node {number + 1}: a guest is booting")
    guest, device = boot(mode, node, name, stack)
    nic = guest.nics()[0]
    guest.configure(nic.name, device["addresses"])
    ip = device["addresses"][0].partition("/")[0]
    row.guests.append({"ip": ip, "mac": nic.mac, "mtu": nic.mtu})
    return guest


def _ping(guest: Guest, ip: str, size: int) -> float:
    """Median round trip in ms, by the guest's busybox."""
    said = guest.run(f"ping -c 5 -W 2 -s {size} {ip}", 20)
    return round(statistics.median(map(float, re.findall(r"time=([\d.]+) ms", said))), 3)
