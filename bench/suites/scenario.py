"""The base of all attach scenarios: tasks that run on one node."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import cached_property

from bench.results import Results, Series
from bench.suites.task import Options, Task
from bench.testbed.attachments import AttachmentType
from bench.testbed.node import Node


class Scenario:
    """Tasks on one node, which is made when the first of them needs it.

    `close` removes what they made and may be called again; closing the `stack` of the constructor
    does the same.
    """

    switch = ""  # as `Node` takes it

    def __init__(self, options: Options, results: Results, stack: ExitStack) -> None:
        self.options, self.results = options, results
        self.stack = stack.enter_context(ExitStack())

    @cached_property
    def node(self) -> Node:
        """The node, with its vmlinkd running."""
        node = self.stack.enter_context(Node(self.switch))
        node.start()
        return node

    @property
    def rounds(self) -> int:
        """How many samples of each call to take."""
        return self.options.rounds or (10 if self.options.quick else 150)

    @property
    def fewer_rounds(self) -> int:
        """How many samples to take where it takes long to prepare for them."""
        return max(1, self.rounds // 2)

    @property
    def bursts(self) -> int:
        """How many times to measure many calls at once."""
        return max(1, self.rounds // 30)

    def at(self, **more: int | str) -> dict[str, int | str]:
        """The conditions of a series; `switch` separates what cannot be compared."""
        return {"switch": self.switch or "linux", **more}

    def available(self, *kinds: AttachmentType) -> list[AttachmentType]:
        """Those that this machine can run; a series without samples says why others cannot."""
        available = []
        for kind in kinds:
            if reason := kind.missing():
                series = Series("attach", "add", "ms", kind.name, "vmlink", self.at(parallel=1))
                series.note = reason
                self.results.add(series)
            else:
                available.append(kind)
        return available

    def tasks(self) -> list[Task]:
        """The tasks, in order; empty when this machine can run none."""
        raise NotImplementedError

    def close(self) -> None:
        """Remove the node and all that is on it."""
        self.stack.close()


def tasks_of(scenarios: Iterable[Scenario]) -> list[Task]:
    """The tasks of several scenarios, one scenario after the other."""
    return [task for scenario in scenarios for task in scenario.tasks()]
