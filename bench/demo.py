"""./run demo: vmlink's main job, once in every mode that this kernel can do.

A node in a network namespace with its own vmlinkd; for each mode a pod, attached by the executed
CNI plugin, with a real guest behind it that is pinged and passes iperf3 both ways.
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

from bench import guest as guests
from bench import snapshot
from bench.guest import Guest
from bench.node import PLUGINS, Node, give_back_on_sigterm
from cni import redirect

SUBNETS = ("10.88.0.0/24", "fd00:88::/64")
GATEWAY = "10.88.0.1"


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


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON too")
    parser.add_argument("--seconds", type=float, default=2, help="for each iperf3 (default: 2)")
    options = parser.parse_args()
    give_back_on_sigterm()
    snapshot.adopt_orphans()
    before = snapshot.take()
    say = Progress()
    say(f"guests run by {guests.accelerator()}: {guests.accelerator_reason()}")
    rows = list(_rows(options.seconds, say))
    left = snapshot.left_behind(before)
    say.end()
    _print_table(rows)
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
    with Node() as node:
        node.start()
        missing = redirect.supported()
        for uplink in ("linux", "chained"):
            for engine in redirect.ENGINES:
                row = Row("tc", uplink, engine, skipped=missing[engine])
                if uplink == "chained" and not (PLUGINS / "ptp").exists():
                    row.skipped = f"no plugin to chain on: {PLUGINS}/ptp is missing"
                if not row.skipped:
                    say(f"{row.mode} on {uplink} with {engine}: a guest is booting")
                    try:
                        _fill(row, node, seconds)
                    except (AssertionError, guests.GuestError) as e:
                        say(f"{row.mode} on {uplink} with {engine} failed: {e}\n")
                yield row
        say("giving everything back")


def _fill(row: Row, node: Node, seconds: float) -> None:
    container = f"demo-{row.uplink}-{row.redirect}".replace("_", "-")
    with ExitStack() as stack:
        pod = node.pod(container)
        stack.callback(node.lab.drop, pod)
        attach = _chained if row.uplink == "chained" else _on_bridge
        row.add_ms = round(attach(node, container, pod, row.redirect, stack), 2)
        device = json.loads(node.run(node.ctl("device", container)).stdout)[0]
        guest = stack.enter_context(
            Guest.boot(prefix=node.ctl("exec", container, "--"), netns=str(node.path))
        )
        nic = guest.nics()[0]
        gateways = [gw for _, gw in device["routes"] if gw]
        guest.configure(nic.name, device["addresses"], gateways)
        ip = device["addresses"][0].partition("/")[0]
        row.guest = {"ip": ip, "mac": nic.mac, "mtu": nic.mtu}
        where = str(node.path)
        row.ping_ms = round(guests.ping(where, ip), 3)
        row.tcp_in_gbps = round(guests.iperf_tcp(guest, ip, where, seconds), 2)
        row.tcp_out_gbps = round(guests.iperf_tcp(guest, ip, where, seconds, reverse=True), 2)
        row.ok = (nic.mac, nic.mtu) == (device["mac"], device["mtu"])


def _on_bridge(node: Node, container: str, pod: Path, engine: str, stack: ExitStack) -> float:
    conf = {
        "cniVersion": "1.1.0",
        "name": "demo",
        "type": "vmlink",
        "redirect": engine,
        "linux": {"bridge": "demo0", "gateway": True},
        "ipam": node.ipam(*SUBNETS, routes=("0.0.0.0/0", "::/0")),
    }
    return _add(node, conf, container, pod, stack)


def _chained(node: Node, container: str, pod: Path, engine: str, stack: ExitStack) -> float:
    """Behind Debian's ptp, a veth without any bridge."""
    ipam = {**node.ipam("10.89.0.0/24", routes=("0.0.0.0/0",))}
    ptp = {"cniVersion": "1.0.0", "name": "demo-ptp", "type": "ptp", "ipam": ipam}
    made = node.call("ADD", ptp, container, pod, plugin=PLUGINS / "ptp").expect()
    stack.callback(node.call, "DEL", ptp, container, pod, plugin=PLUGINS / "ptp")
    conf = {
        "cniVersion": "1.0.0",
        "name": "demo-ptp",
        "type": "vmlink",
        "redirect": engine,
        "prevResult": made,
    }
    return _add(node, conf, container, pod, stack)


def _add(node: Node, conf: dict[str, Any], container: str, pod: Path, stack: ExitStack) -> float:
    answer = node.call("ADD", conf, container, pod)
    answer.expect()
    stack.callback(lambda: node.call("DEL", conf, container, pod).expect())
    return answer.ms


def _print_table(rows: list[Row]) -> None:
    head = ("MODE", "UPLINK", "REDIRECT", "ADD ms", "GUEST", "PING ms", "TCP in", "out Gbit/s", "")
    table = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[n]) for line in table) for n in range(len(head))]
    for line in table:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def _cells(row: Row) -> tuple[str, ...]:
    guest = "{ip} {mac} MTU {mtu}".format(**row.guest) if row.guest else "-"
    numbers = [row.add_ms, guest, row.ping_ms, row.tcp_in_gbps, row.tcp_out_gbps]
    verdict = f"skipped: {row.skipped}" if row.skipped else "ok" if row.ok else "FAILED"
    shown = ("-" if n is None else str(n) for n in numbers)
    return (row.mode, row.uplink, row.redirect, *shown, verdict)


if __name__ == "__main__":
    sys.exit(main())
