"""A node with all its datapaths, and the tasks that make, measure and remove them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from subprocess import SubprocessError

from bench.contenders.datapaths import Endpoints
from bench.results import Results
from bench.suites.datapath_metrics import Effort, Measurement, measure
from bench.suites.task import Task
from bench.testbed.daemons import SwitchError
from bench.testbed.guest import GuestError
from bench.testbed.node import Node

NODE_SECONDS, BOOT_SECONDS, VETH_SECONDS, END_SECONDS = 1.0, 2.7, 0.1, 1.0  # estimates
FAILURES = (AssertionError, GuestError, SwitchError, OSError, SubprocessError)


class DatapathNode:
    """A node with a switch as `Node` takes it, and the datapaths on it.

    A datapath that fails gets a series that says why; the others go on.
    """

    def __init__(self, switch: str, results: Results, stack: ExitStack) -> None:
        self._switch, self._results = switch, results
        self._node: Node | None = None
        self._reason = ""
        self._cleanup = stack.enter_context(ExitStack())
        self._endpoints: dict[str, Endpoints] = {}

    def start_task(self) -> Task:
        """Make the node."""
        return Task(f"node {self._switch}".rstrip(), NODE_SECONDS, self._start)

    def end_task(self) -> Task:
        """End the guests and remove the node."""
        return Task("clean-up", END_SECONDS, self._cleanup.close)

    def measure_tasks(self, measurements: Sequence[Measurement], effort: Effort) -> list[Task]:
        """Make the datapaths, then measure them in passes, each of which begins with another."""
        possible = []
        for what in measurements:
            if reason := what.datapath.missing():
                self._results.add(what.failed(reason))
            else:
                possible.append(what)
        tasks = []
        for what in possible:
            seconds = BOOT_SECONDS if what.datapath.has_guest else VETH_SECONDS
            tasks.append(Task(f"{what.name}: make", seconds, partial(self._make, what)))
        for number in range(effort.passes):
            first = number * len(possible) // effort.passes
            for what in (*possible[first:], *possible[:first]):
                name = f"{what.name}: pass {number + 1} of {effort.passes}"
                run = partial(self._measure, what, effort)
                tasks.append(Task(name, what.seconds(effort), run))
        return tasks

    def _start(self) -> None:
        try:
            node = self._cleanup.enter_context(Node(self._switch))
            node.start()
            if node.switch and node.switch.has_dpdk:
                # A poll mode driver that sleeps when idle adds its sleep to round trips.
                node.switch.vsctl("set", "Open_vSwitch", ".", "other_config:pmd-maxsleep=0")
            self._node = node
        except FAILURES as error:
            self._reason = f"failed: {error}"

    def _make(self, what: Measurement) -> None:
        if not self._node:
            self._results.add(what.failed(self._reason))
            return
        try:
            with ExitStack() as made:
                ends = what.datapath.open(self._node, f"bench-{len(self._endpoints)}", made)
                if what.sender:
                    ends = self._of(what.sender).to_guest(ends)
                self._endpoints[what.name] = ends
                self._cleanup.push(made.pop_all())
        except FAILURES as error:
            self._results.add(what.failed(f"failed: {error}"))

    def _of(self, name: str) -> Endpoints:
        if name not in self._endpoints:
            raise GuestError(f"{name}, which is to send, could not be made")
        return self._endpoints[name]

    def _measure(self, what: Measurement, effort: Effort) -> None:
        """Measure a datapath, unless it has failed before."""
        ends = self._endpoints.get(what.name)
        if not ends:
            return
        try:
            with ends.resumed():
                measure(what, ends, effort, self._results)
        except FAILURES as error:
            del self._endpoints[what.name]
            self._results.add(what.failed(f"failed: {error}"))
