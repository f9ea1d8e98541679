"""Ports of Open vSwitch as a node fills: vmlink's ADD (mode tap) beside ovs-vsctl add-port.

The bridge, of a userspace datapath, is filled with plain pods (mode veth). Then both add ports in
turns, in one run; ovs-vsctl waits for ovs-vswitchd, as others use it, on veths made beforehand.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.node import Node, give_back_on_sigterm
from bench.switch import Switch

BRIDGE = "br0"
STEPS = (0, 100, 300, 500)
BURST = 50
ONE_AT_A_TIME = 20
CALLERS = 32  # processes that fill the bridge at the same time
SETTLE = 2.0  # seconds: new pods look for routers and duplicates, and the switch floods it all


@dataclass(frozen=True)
class Line:
    """With so many ports there: medians of one at a time, in ms, and vmlinkd's CPU per ADD."""

    ports: int
    add_ms: float
    vsctl_ms: float
    cpu_ms: float


@dataclass(frozen=True)
class Burst:
    """BURST ports: ADDs all at once, ovs-vsctl one after the other; wall time in ms."""

    ports: int
    adds_ms: float
    vsctl_ms: float


class Filler:
    """Attachments of vmlink on a bridge, numbered."""

    def __init__(self, node: Node, switch: Switch) -> None:
        self.node, self.switch = node, switch
        self.pod = node.pod("ports")
        self._present = 0

    def call(self, verb: str, number: int, mode: str = "tap") -> float:
        """All in one namespace, so each has another name. Milliseconds."""
        conf: dict[str, Any] = {"cniVersion": "1.0.0", "name": "ports", "type": "vmlink"}
        conf |= {"mode": mode, "ovs": {"bridge": BRIDGE}}
        answer = self.node.call(verb, conf, "ports", self.pod, ifname=f"e{number}")
        answer.expect()
        return answer.ms

    def fill(self, ports: int) -> None:
        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(lambda n: self.call("ADD", n, "veth"), range(self._present, ports)))
        self._present = ports
        time.sleep(SETTLE)

    def at_once(self, count: int) -> float:
        """Milliseconds until the last of so many is attached; they are gone afterwards."""
        numbers = range(self._present, self._present + count)
        start = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda n: self.call("ADD", n), numbers))
        taken = (time.perf_counter() - start) * 1000
        for number in numbers:
            self.call("DEL", number)
        return taken

    def vsctl(self, count: int) -> list[float]:
        """Milliseconds of each ovs-vsctl add-port; the ports are gone afterwards."""
        links = [f"bench{n}" for n in range(count)]
        for link in links:
            peer = ["peer", "name", link, "netns", str(self.pod)]
            self.node.run(["ip", "link", "add", link, "up", "type", "veth", *peer])
            self.node.run(["ip", "link", "set", link, "up"], self.pod)
        times = []
        for link in links:
            start = time.perf_counter()
            self.switch.vsctl("add-port", BRIDGE, link)
            times.append((time.perf_counter() - start) * 1000)
        self.switch.vsctl(*itertools.chain(*(["--", "del-port", link] for link in links)))
        for link in links:
            self.node.run(["ip", "link", "del", link])
        return times


def cpu_ms(node: Node) -> float:
    """vmlinkd's CPU time so far, all threads (proc(5), schedstat)."""
    assert node.daemon
    tasks = Path(f"/proc/{node.daemon.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e6


def growth(filler: Filler, rounds: int) -> Iterator[Line]:
    for ports in STEPS:
        filler.fill(ports)
        added: list[float] = []
        vsctl: list[float] = []
        used = 0.0
        for _ in range(rounds):
            numbers = range(ports, ports + ONE_AT_A_TIME)
            before = cpu_ms(filler.node)
            added += [filler.call("ADD", number) for number in numbers]
            used += cpu_ms(filler.node) - before
            for number in numbers:
                filler.call("DEL", number)
            vsctl += filler.vsctl(ONE_AT_A_TIME)
        medians = statistics.median(added), statistics.median(vsctl)
        yield Line(ports, *medians, used / len(added))


def burst(filler: Filler, rounds: int) -> Burst:
    adds, vsctl = [], []
    for _ in range(rounds):
        adds.append(filler.at_once(BURST))
        vsctl.append(sum(filler.vsctl(BURST)))
    return Burst(STEPS[-1], statistics.median(adds), statistics.median(vsctl))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./run bench ports", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON too")
    options = parser.parse_args()
    give_back_on_sigterm()
    with Node("userspace") as node:
        assert node.switch
        node.switch.add_bridge(BRIDGE)
        node.start()
        filler = Filler(node, node.switch)
        filler.at_once(1)  # caches, first uses
        lines = list(growth(filler, options.rounds))
        together = burst(filler, options.rounds)
        node.lab.drop(filler.pod)
    _report(lines, together)
    if options.json:
        told = {"growth": [asdict(line) for line in lines], "burst": asdict(together)}
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0


def _report(lines: Sequence[Line], together: Burst) -> None:
    print("PORTS   ADD ms  ovs-vsctl ms   ratio  vmlinkd CPU ms per ADD")
    for line in lines:
        ratio = line.add_ms / line.vsctl_ms
        print(
            f"{line.ports:>5}  {line.add_ms:>7.2f}  {line.vsctl_ms:>12.2f}  {ratio:>6.2f}  "
            f"{line.cpu_ms:.2f}"
        )
    ratio = together.adds_ms / together.vsctl_ms
    print(
        f"{BURST} more at {together.ports}: ADDs at once {together.adds_ms:.0f} ms, ovs-vsctl one "
        f"after the other {together.vsctl_ms:.0f} ms (ratio {ratio:.3f})"
    )


if __name__ == "__main__":
    sys.exit(main())
