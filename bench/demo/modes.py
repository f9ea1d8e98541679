"""A guest behind every type of attachment that this machine can make.

A node in a network namespace has its own vmlinkd and Open vSwitch. For each type a pod is attached
by the executed CNI plugin, and a real guest behind it answers pings and runs iperf3 both ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bench.demo import cells
from bench.progress import StatusLine
from bench.testbed.attachments import ATTACHMENT_TYPES, AttachmentType, attach_guest
from bench.testbed.daemons import SwitchError
from bench.testbed.guest import GuestError
from bench.testbed.node import Node
from bench.testbed.probes import iperf_tcp, ping

HEAD = ("MODE", "UPLINK", "REDIRECT", "ADD ms", "GUEST", "PING ms", "TCP in", "out Gbit/s", "")


@dataclass
class Row:
    """A row of the table. Times in ms, rates in Gbit/s; `skipped` says why there are none."""

    mode: str
    uplink: str
    redirect: str
    add_ms: float | None = None
    guest: dict[str, Any] = field(default_factory=dict)
    ping_ms: float | None = None
    tcp_in_gbps: float | None = None
    tcp_out_gbps: float | None = None
    ok: bool = False
    skipped: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row as text, below HEAD."""
        guest = "{ip} {mac} MTU {mtu}".format(**self.guest) if self.guest else ""
        values = (self.add_ms, guest, self.ping_ms, self.tcp_in_gbps, self.tcp_out_gbps)
        verdict = cells.verdict(self.ok, self.skipped)
        return (self.mode, self.uplink, self.redirect, *map(cells.value, values), verdict)


def rows(seconds: float, status: StatusLine) -> Iterator[Row]:
    """All rows, with a node for each kind of switch, one after the other: DPDK takes a core."""
    for switch in dict.fromkeys(kind.switch for kind in ATTACHMENT_TYPES):
        kinds = [kind for kind in ATTACHMENT_TYPES if kind.switch == switch]
        group = [Row(k.mode, k.uplink, k.redirect or "-", skipped=k.missing()) for k in kinds]
        if not all(row.skipped for row in group):
            with Node(switch) as node:
                node.start()
                for kind, row in zip(kinds, group, strict=True):
                    if not row.skipped:
                        _try(kind, row, node, seconds, status)
        yield from group
    status.show("everything is removed")


def _try(kind: AttachmentType, row: Row, node: Node, seconds: float, status: StatusLine) -> None:
    status.show(f"{kind.name}: a guest is booting")
    try:
        _fill(kind, row, node, seconds)
    except (AssertionError, GuestError, SwitchError) as e:
        status.say(f"{kind.name} failed: {e}")


def _fill(kind: AttachmentType, row: Row, node: Node, seconds: float) -> None:
    with ExitStack() as stack:
        attached = attach_guest(kind, node, f"demo-{kind.name}", stack)
        guest, device, where = attached.guest, attached.device, str(attached.peer)
        row.add_ms = round(attached.add_ms, 2)
        nic = guest.nics()[0]
        gateways = [r["gw"] for r in device["routes"] if "gw" in r]
        guest.configure(nic.name, device["addresses"], gateways)
        ip = device["addresses"][0].partition("/")[0]
        row.guest = {"ip": ip, "mac": nic.mac, "mtu": nic.mtu}
        row.ping_ms = round(ping(where, ip), 3)
        row.tcp_in_gbps = round(iperf_tcp(guest, ip, where, seconds), 2)
        row.tcp_out_gbps = round(iperf_tcp(guest, ip, where, seconds, reverse=True), 2)
        row.ok = (nic.mac, nic.mtu) == (device["mac"], device["mtu"])
