"""A node with its contenders, and the tasks that make, measure and give back all of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from subprocess import SubprocessError

from bench.contenders.pairs import Pair
from bench.report.results import Results, Task
from bench.suites.visit import Effort, Entry, visit
from bench.testbed.daemons import SwitchError
from bench.testbed.guest import GuestError
from bench.testbed.node import Node

NODE_SECONDS, BOOT_SECONDS, WIRE_SECONDS, END_SECONDS = 1.0, 2.7, 0.1, 1.0  # estimates
FAILURES = (AssertionError, GuestError, SwitchError, OSError, SubprocessError)


class Contest:
    """A node with the kind of switch that bench.node.Node takes, and what takes part on it."""

    def __init__(self, switch: str, results: Results, stack: ExitStack) -> None:
        self._switch, self._results = switch, results
        self._node: Node | None = None
        self._reason = ""
        self._taken = stack.enter_context(ExitStack())
        self._pairs: dict[str, Pair] = {}

    def begin(self) -> Task:
        return Task(f"node {self._switch}".rstrip(), NODE_SECONDS, self._start)

    def end(self) -> Task:
        """Give all back before the next one."""
        return Task("guests end", END_SECONDS, self._taken.close)

    def passes(self, entries: Sequence[Entry], effort: Effort) -> list[Task]:
        """Make the contenders and measure them, in passes of which each begins with another."""
        possible = []
        for entry in entries:
            if reason := entry.contender.missing():
                self._results.add(entry.absent(reason))
            else:
                possible.append(entry)
        tasks = []
        for entry in possible:
            seconds = BOOT_SECONDS if entry.contender.boots else WIRE_SECONDS
            tasks.append(Task(f"{entry.name}: make", seconds, partial(self._make, entry)))
        for number in range(effort.passes):
            turn = number * len(possible) // effort.passes
            for entry in (*possible[turn:], *possible[:turn]):
                name = f"{entry.name}: pass {number + 1} of {effort.passes}"
                run = partial(self._visit, entry, effort)
                tasks.append(Task(name, entry.seconds(effort), run))
        return tasks

    def _start(self) -> None:
        try:
            node = self._taken.enter_context(Node(self._switch))
            node.start()
            if node.switch and node.switch.has_dpdk:
                # A poller that sleeps while it has nothing to do adds its sleep to round trips.
                node.switch.vsctl("set", "Open_vSwitch", ".", "other_config:pmd-maxsleep=0")
            self._node = node
        except FAILURES as error:
            self._reason = f"failed: {error}"

    def _make(self, entry: Entry) -> None:
        if not self._node:
            self._results.add(entry.absent(self._reason))
            return
        try:
            with ExitStack() as made:
                pair = entry.contender.open(self._node, f"bench-{len(self._pairs)}", made)
                if entry.beside:
                    pair = self._known(entry.beside).beside(pair)
                self._pairs[entry.name] = pair
                self._taken.push(made.pop_all())
        except FAILURES as error:
            self._results.add(entry.absent(f"failed: {error}"))

    def _known(self, name: str) -> Pair:
        if name not in self._pairs:
            raise GuestError(f"{name} is not there")
        return self._pairs[name]

    def _visit(self, entry: Entry, effort: Effort) -> None:
        """What has failed once is not tried again."""
        pair = self._pairs.get(entry.name)
        if not pair:
            return
        try:
            with pair.awake():
                visit(entry, pair, effort, self._results)
        except FAILURES as error:
            del self._pairs[entry.name]
            self._results.add(entry.absent(f"failed: {error}"))
