"""./run demo: vmlink's main job, once in every mode that this kernel can do.

A node in a network namespace with its own vmlinkd and Open vSwitch; for each way a pod, attached by
the executed CNI plugin, with a real guest behind it that is pinged and passes iperf3 both ways.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.demo import ovn
from bench.testbed import guest as guests
from bench.testbed import snapshot
from bench.testbed.daemons import SwitchError
from bench.testbed.node import Node, give_back_on_sigterm
from bench.testbed.ways import WAYS, Way, attach
from cni.plugins.table import columns

HEAD = ("MODE", "UPLINK", "REDIRECT", "ADD ms", "GUEST", "PING ms", "TCP in", "out Gbit/s", "")


@dataclass
class Row:
    """One line of the table. Times in ms, rates in Gbit/s; `skipped` says why there is none."""

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
        guest = "{ip} {mac} MTU {mtu}".format(**self.guest) if self.guest else "-"
        numbers = [self.add_ms, guest, self.ping_ms, self.tcp_in_gbps, self.tcp_out_gbps]
        verdict = f"skipped: {self.skipped}" if self.skipped else "ok" if self.ok else "FAILED"
        shown = ("-" if n is None else str(n) for n in numbers)
        return (self.mode, self.uplink, self.redirect, *shown, verdict)


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON too")
    parser.add_argument("--seconds", type=float, default=2, help="for each iperf3 (default: 2)")
    parser.add_argument("--ovn", action="store_true", help="guests on two nodes of an OVN instead")
    options = parser.parse_args()
    give_back_on_sigterm()
    snapshot.adopt_orphans()
    before = snapshot.take()
    say = Progress()
    say(f"guests run by {guests.accelerator()}: {guests.accelerator_reason()}")
    rows: list[Row | ovn.Row] = []
    rows += ovn.rows(options.seconds, say) if options.ovn else _rows(options.seconds, say)
    left = snapshot.left_behind(before)
    say.end()
    head = ovn.HEAD if options.ovn else HEAD
    for line in columns([head, *(row.cells() for row in rows)]):
        print(line)
    for what in left:
        print(f"left behind: {what}")
    if options.json:
        told = {"modes": [asdict(r) for r in rows], "left_behind": left}
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0 if not left and all(r.ok or r.skipped for r in rows) else 1


class Progress:
    """What is going on: one line that is written over on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        line = f"\r\033[K{text}" if self._terminal else f"{text}\n"
        print(line, end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._terminal:
            self("")


def _rows(seconds: float, say: Progress) -> Iterator[Row]:
    """A node for each kind of switch, one after the other: DPDK keeps a core for itself."""
    for kind in dict.fromkeys(way.switch for way in WAYS):
        ways = [way for way in WAYS if way.switch == kind]
        rows = [Row(w.mode, w.uplink, w.redirect or "-", skipped=w.missing()) for w in ways]
        if not all(row.skipped for row in rows):
            with Node(kind) as node:
                node.start()
                for way, row in zip(ways, rows, strict=True):
                    if not row.skipped:
                        _show(way, row, node, seconds, say)
        yield from rows
    say("everything is given back")


def _show(way: Way, row: Row, node: Node, seconds: float, say: Progress) -> None:
    say(f"{way.name}: a guest is booting")
    try:
        _fill(way, row, node, seconds)
    except (AssertionError, guests.GuestError, SwitchError) as e:
        say(f"{way.name} failed: {e}\n")


def _fill(way: Way, row: Row, node: Node, seconds: float) -> None:
    with ExitStack() as stack:
        attached = attach(way, node, f"demo-{way.name}", stack)
        guest, device, where = attached.guest, attached.device, str(attached.peer)
        row.add_ms = round(attached.add_ms, 2)
        nic = guest.nics()[0]
        guest.configure(nic.name, device["addresses"], [gw for _, gw in device["routes"] if gw])
        ip = device["addresses"][0].partition("/")[0]
        row.guest = {"ip": ip, "mac": nic.mac, "mtu": nic.mtu}
        row.ping_ms = round(guests.ping(where, ip), 3)
        row.tcp_in_gbps = round(guests.iperf_tcp(guest, ip, where, seconds), 2)
        row.tcp_out_gbps = round(guests.iperf_tcp(guest, ip, where, seconds, reverse=True), 2)
        row.ok = (nic.mac, nic.mtu) == (device["mac"], device["mtu"])
