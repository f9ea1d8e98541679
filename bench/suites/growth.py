"""How ADD and DEL grow with the attachments that are already there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property, partial

from bench.contenders.ovs_vsctl import OvsVsctl, wait_until_idle
from bench.contenders.plugins import Attachment, Contender, Plugin, debian, series, vmlink
from bench.results import Results
from bench.suites import kernel_alone
from bench.suites.daemon_usage import IDLE_SECONDS, measure_idle, measure_with_usage
from bench.suites.rounds import call_at_once, measure_in_turns, no_wait, pods
from bench.suites.scenario import Scenario
from bench.suites.task import Task
from bench.testbed import pool, switch
from bench.testbed.attachments import AttachmentType
from bench.testbed.node import Node

CALLERS = 8  # processes that fill the node at the same time
BURST = 50
WARM_UP = 2  # rounds that are not counted
WITH_POOL = "tap-ovs-pool"
POOL_SIZE = 8  # more ports than are taken in turns, fewer than in a burst
SETTLE = 2.0  # seconds: new pods send router and neighbour solicitations, which a switch floods


class Filler:
    """A contender whose attachments fill a node."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self._present: list[Attachment] = []

    def fill(self, count: int) -> None:
        """Attach pods until there are `count`. Raises AssertionError."""
        more = [self.contender.attachment() for _ in range(count - len(self._present))]
        call_at_once(more, "ADD", CALLERS)
        self._present += more


class LinuxGrowth(Scenario):
    """Mode tc and Debian's bridge, each on a node that has only its own attachments."""

    def tasks(self) -> list[Task]:
        counts = (10, 100, 300) if self.options.quick else (10, 100, 300, 1000)
        tasks = [
            Task(
                f"{count} attachments on a Linux bridge",
                SETTLE + count * 0.02 + self.rounds * 0.05,
                partial(self.measure, count),
            )
            for count in counts
        ]
        idle = partial(measure_idle, self, "tc-linux", self.at(present=counts[-1]))
        return [*tasks, Task("vmlinkd idle", IDLE_SECONDS, idle), Task("clean-up", 1, self.close)]

    @cached_property
    def _vmlink(self) -> Plugin:
        return vmlink(AttachmentType("tc", "linux"), self.node, 100, self.stack)

    @cached_property
    def _fillers(self) -> list[Filler]:
        other = self.stack.enter_context(Node())
        return [Filler(self._vmlink), Filler(debian("bridge", other, 100))]

    def measure(self, count: int) -> None:
        """Fill both nodes with `count` attachments and measure."""
        for filler in self._fillers:
            filler.fill(count)
        time.sleep(SETTLE)
        contenders = [filler.contender for filler in self._fillers]
        measure_in_turns(contenders, WARM_UP, Results(), {})
        at = self.at(present=count)
        measure_with_usage(self, contenders, at, no_wait)
        bridge = self._vmlink.conf["linux"]["bridge"]
        kernel_alone.measure(self.node, self.fewer_rounds, self.results, at, bridge)


class OvsGrowth(Scenario):
    """Mode tap with and without a pool, and ovs-vsctl, on a bridge full of plain pods."""

    switch = "ovs"

    @cached_property
    def node(self) -> Node:
        """The node, whose vmlinkd has a pool for one of its networks."""
        node = self.stack.enter_context(Node(self.switch))
        pool.start(node, f"bench-{WITH_POOL}", POOL_SIZE)
        return node

    def tasks(self) -> list[Task]:
        if switch.missing():  # attach.OvsScenario puts the reason into the results
            return []
        counts = (0, 100, 300) if self.options.quick else (0, 100, 300, 500)
        tasks = [
            Task(
                f"{count} ports on OVS",
                SETTLE + count * 0.01 + self.rounds * (0.04 + count * 0.0005),
                partial(self.measure, count),
            )
            for count in counts
        ]
        at = self.at(present=counts[-1])
        burst = self.bursts * (2 + counts[-1] * 0.03)
        idle = partial(measure_idle, self, "tap-ovs", at)
        return [
            *tasks,
            Task(f"{BURST} ports at once", burst, partial(self.measure_burst, at)),
            Task("vmlinkd idle on OVS", IDLE_SECONDS, idle),
            Task("clean-up", 0.5, self.close),
        ]

    @cached_property
    def _filler(self) -> Filler:
        return Filler(vmlink(AttachmentType("veth", "ovs"), self.node, 100, self.stack))

    @cached_property
    def _contenders(self) -> list[Contender]:
        tap = AttachmentType("tap", "ovs")
        return [
            vmlink(tap, self.node, 101, self.stack),
            vmlink(tap, self.node, 102, self.stack, "pool"),
            OvsVsctl(self.node, "ovs0"),
        ]

    def measure(self, count: int) -> None:
        """Fill the bridge with `count` ports and measure."""
        self._filler.fill(count)
        time.sleep(SETTLE)
        measure_in_turns(self._contenders, WARM_UP, Results(), {})
        measure_with_usage(self, self._contenders, self.at(present=count), self.settle)

    def settle(self) -> None:
        """Wait until the pool is full and the switch is idle."""
        pool.wait_until_full(self.node, f"bench-{WITH_POOL}", POOL_SIZE)
        wait_until_idle(self.node)

    def measure_burst(self, at: Mapping[str, int | str]) -> None:
        """Measure BURST ADDs at once, and ovs-vsctl also one by one, as scripts call it."""
        serial = OvsVsctl(self.node, "ovs0", "ovs-vsctl, one by one")
        contenders = [(each, BURST) for each in self._contenders] + [(serial, 1)]
        for contender, parallel in contenders * self.bursts:
            self.settle()
            with pods(contender, BURST) as attachments:
                wall = call_at_once(attachments, "ADD", parallel).wall
                call_at_once(attachments, "DEL", CALLERS)
            self.results.add(series(contender, "burst_add", "ms", {**at, "parallel": BURST}), wall)
