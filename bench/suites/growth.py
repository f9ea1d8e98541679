"""How ADD and DEL grow with what is attached already, and what vmlinkd takes meanwhile."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

from bench.contenders.plugins import (
    Attachment,
    Contender,
    Plugin,
    Vsctl,
    debian,
    series,
    vmlink,
    vsctl,
)
from bench.report.results import Results, Series, Task
from bench.suites import floor
from bench.suites.rounds import Part, at_once, in_turns, nothing, pods
from bench.testbed import pooled, switch
from bench.testbed.node import Node
from bench.testbed.ways import Way

CALLERS = 8  # processes that fill the node at the same time
BURST = 50
WARM_UP = 2
POOLED = "tap-ovs-pool"
KITS = 8  # more than are taken one after the other
IDLE = 3.0  # seconds
_CPUCLOCK_SCHED = 2  # linux/posix-timers.h
SETTLE = 2.0  # seconds: new pods look for routers and duplicates, and a switch floods it all


class Filled:
    """A contender, and the attachments of it that are there."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self._there: list[Attachment] = []

    def fill(self, count: int) -> None:
        more = [self.contender.attachment() for _ in range(count - len(self._there))]
        at_once(more, "ADD", CALLERS)
        self._there += more


class OnLinux(Part):
    """Mode tc beside Debian's bridge. Each has a node of its own: both are to find only their
    own links there.
    """

    def tasks(self) -> list[Task]:
        steps = (10, 100, 300) if self.options.quick else (10, 100, 300, 1000)
        found = [
            Task(
                f"{count} attachments on a Linux bridge",
                SETTLE + count * 0.02 + self.rounds * 0.05,
                partial(self._measure, count),
            )
            for count in steps
        ]
        idle = partial(measure_idle, self, "tc-linux", self.at(present=steps[-1]))
        return [*found, Task("vmlinkd idle", IDLE, idle), Task("giving back", 1, self.give_back)]

    @cached_property
    def _ours(self) -> Plugin:
        return vmlink(Way("tc", "linux"), self.node, 100, self.stack)

    @cached_property
    def _filled(self) -> list[Filled]:
        other = self.stack.enter_context(Node())
        return [Filled(self._ours), Filled(debian("bridge", other, 100))]

    def _measure(self, count: int) -> None:
        for filled in self._filled:
            filled.fill(count)
        time.sleep(SETTLE)
        found = [filled.contender for filled in self._filled]
        in_turns(found, WARM_UP, Results(), {})
        at = self.at(present=count)
        compare(self, found, at, nothing)
        bridge = self._ours.conf["linux"]["bridge"]
        floor.measure(self.node, _rounds(self), self.results, at, bridge)


class OnOvs(Part):
    """Mode tap, with and without a pool, beside ovs-vsctl; the bridge is filled with plain pods
    (mode veth). The pool is smaller than a burst.
    """

    switch = "userspace"

    @cached_property
    def node(self) -> Node:
        node = self.stack.enter_context(Node(self.switch))
        pooled.start(node, f"bench-{POOLED}", KITS)
        return node

    def tasks(self) -> list[Task]:
        if switch.missing():  # which the suite's other tasks tell
            return []
        steps = (0, 100, 300) if self.options.quick else (0, 100, 300, 500)
        found = [
            Task(
                f"{count} ports on OVS",
                SETTLE + count * 0.01 + self.rounds * (0.04 + count * 0.0005),
                partial(self._measure, count),
            )
            for count in steps
        ]
        last = self.at(present=steps[-1])
        burst = self.bursts * (2 + steps[-1] * 0.03)
        return [
            *found,
            Task(f"{BURST} ports at once", burst, partial(self._burst, last)),
            Task("vmlinkd idle on OVS", IDLE, partial(measure_idle, self, "tap-ovs", last)),
            Task("giving back", 0.5, self.give_back),
        ]

    @cached_property
    def _filled(self) -> Filled:
        return Filled(vmlink(Way("veth", "ovs"), self.node, 100, self.stack))

    @cached_property
    def _ports(self) -> list[Contender]:
        tap = Way("tap", "ovs")
        return [
            vmlink(tap, self.node, 101, self.stack),
            vmlink(tap, self.node, 102, self.stack, "pool"),
            Vsctl(self.node, "ovs0"),
        ]

    def _measure(self, count: int) -> None:
        self._filled.fill(count)
        time.sleep(SETTLE)
        in_turns(self._ports, WARM_UP, Results(), {})
        compare(self, self._ports, self.at(present=count), self._quiet)

    def _quiet(self) -> None:
        """The pool is full, and the switch has nothing left to do."""
        pooled.settle(self.node, f"bench-{POOLED}", KITS)
        settle(self.node)

    def _burst(self, at: Mapping[str, int | str]) -> None:
        """All at once; ovs-vsctl also one after the other, as a script does it."""
        serial = Vsctl(self.node, "ovs0", "ovs-vsctl, one by one")
        found = [(each, BURST) for each in self._ports] + [(serial, 1)]
        for contender, parallel in found * self.bursts:
            self._quiet()
            with pods(contender, BURST) as made:
                wall = at_once(made, "ADD", parallel).wall
                at_once(made, "DEL", CALLERS)
            self.results.add(series(contender, "burst_add", "ms", {**at, "parallel": BURST}), wall)


def _rounds(part: Part) -> int:
    """Where it takes long to get there, half as many."""
    return max(1, part.rounds // 2)


def compare(
    part: Part,
    found: Sequence[Contender],
    at: Mapping[str, int | str],
    settle: Callable[[], object],
) -> None:
    """The first is vmlink's; what vmlinkd takes for it alone is measured as well."""
    rounds = _rounds(part)
    in_turns(found, rounds, part.results, at, settle)
    before, more = cpu_ms(part.node), max(1, rounds // 4)
    in_turns(found[:1], more, Results(), at, settle)
    used = series(found[0], "cpu", "ms", at, "CPU of vmlinkd for ADD, CHECK and DEL together")
    part.results.add(used, (cpu_ms(part.node) - before) / more)
    measure_memory(part, found[0].name, at)


def settle(node: Node) -> None:
    """Until ovs-vswitchd has nothing left to do: a change is answered when all before is made."""
    assert node.switch
    change = f"external_ids:bench={time.monotonic_ns()}"
    vsctl(node.switch, "set", "Open_vSwitch", ".", change)


def measure_memory(part: Part, contender: str, at: Mapping[str, int | str]) -> None:
    assert part.node.daemon
    rollup = Path(f"/proc/{part.node.daemon.pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss: +(\d+) kB", rollup, re.M)
    assert found, rollup
    memory = Series("attach", "memory", "MB", contender, "vmlink", at, note="PSS of vmlinkd")
    part.results.add(memory, int(found[1]) / 1024)


def measure_idle(part: Part, contender: str, at: Mapping[str, int | str]) -> None:
    """CPU time of vmlinkd in ms per second while nobody asks it for anything."""
    before = cpu_ms(part.node)
    time.sleep(IDLE)
    used = (cpu_ms(part.node) - before) / IDLE
    idle = Series("attach", "idle_cpu", "ms/s", contender, "vmlink", at, note="CPU of vmlinkd")
    part.results.add(idle, used)


def cpu_ms(node: Node) -> float:
    """Vmlinkd's CPU time so far, all threads, those that are gone too (clock_getcpuclockid(3))."""
    assert node.daemon
    clock = (~node.daemon.pid << 3) | _CPUCLOCK_SCHED
    return time.clock_gettime(clock) * 1000
