"""Contenders in turns, one at a time and many at once, and how long they take."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property

from bench.contenders.plugins import Attachment, Contender, series
from bench.report.results import Options, Results, Task
from bench.testbed.node import Node

METRICS = {"ADD": "add", "CHECK": "check", "DEL": "del"}


class Part:
    """Tasks on one node, which is made when the first of them needs it.

    `give_back` may be called at any time and again; the stack that it was made with does as well.
    """

    switch = ""

    def __init__(self, options: Options, results: Results, stack: ExitStack) -> None:
        self.options, self.results = options, results
        self.stack = stack.enter_context(ExitStack())

    @cached_property
    def node(self) -> Node:
        node = self.stack.enter_context(Node(self.switch))
        node.start()
        return node

    @property
    def rounds(self) -> int:
        return self.options.rounds or (10 if self.options.quick else 150)

    def at(self, **more: int | str) -> dict[str, int | str]:
        """The conditions of a series: `switch` keeps apart what is not to be compared."""
        kinds = {"": "linux", "userspace": "ovs"}
        return {"switch": kinds.get(self.switch, self.switch), **more}

    @property
    def bursts(self) -> int:
        """Rounds of what is many calls in itself."""
        return max(1, self.rounds // 30)

    def tasks(self) -> list[Task]:
        raise NotImplementedError

    def give_back(self) -> None:
        self.stack.close()


def nothing() -> None:
    """There is nothing to wait for."""


def able(
    found: Sequence[Contender], results: Results, at: Mapping[str, int | str]
) -> list[Contender]:
    """Each is called once, which fills its caches. A peer that fails is told and left out."""
    left: list[Contender] = []
    for contender in found:
        try:
            once(contender, Results(), {}, nothing)
        except AssertionError as e:
            if contender.role != "peer":
                raise
            results.add(series(contender, METRICS["ADD"], "ms", at, f"failed: {e}"))
        else:
            left.append(contender)
    return left


def in_turns(
    found: Sequence[Contender],
    rounds: int,
    results: Results,
    at: Mapping[str, int | str],
    settle: Callable[[], object] = nothing,
) -> None:
    """One attachment of each after the other. `settle` waits until what the call before has
    left to do in the background is done.
    """
    for contender in turns(found, rounds):
        once(contender, results, at, settle)


def turns(found: Sequence[Contender], rounds: int) -> Iterator[Contender]:
    """Each once in a round, after the first one in an order that differs, but not from run to run:
    who comes after whom matters, since a processor's caches are full of the one before.
    """
    shuffled = random.Random(0)
    for number in range(rounds):
        yield from shuffled.sample(found, len(found)) if number else found


def once(
    contender: Contender,
    results: Results,
    at: Mapping[str, int | str],
    settle: Callable[[], object],
) -> None:
    attachment = contender.attachment()
    try:
        for verb in contender.verbs:
            settle()
            ms = attachment.call(verb)
            results.add(series(contender, METRICS[verb], "ms", at), ms)
    finally:
        attachment.release()


@dataclass(frozen=True)
class Burst:
    """What each call took, and all together; ms."""

    each: list[float]
    wall: float


def at_once(attachments: Sequence[Attachment], verb: str, parallel: int) -> Burst:
    """All are called, `parallel` at a time."""
    with ThreadPoolExecutor(parallel) as pool:
        start = time.perf_counter()
        each = list(pool.map(lambda attachment: attachment.call(verb), attachments))
        return Burst(each, (time.perf_counter() - start) * 1000)


def bursts(part: Part, found: Sequence[Contender], parallel: int) -> None:
    """ADD and DEL, so many at a time: the latency of each, and ADDs in a second."""
    at, results = part.at(parallel=parallel), part.results
    for contender in turns(found, part.bursts):
        with pods(contender, 2 * parallel) as made:
            added = at_once(made, "ADD", parallel)
            gone = at_once(made, "DEL", parallel)
        results.add(series(contender, "add", "ms", at), *added.each)
        results.add(series(contender, "del", "ms", at), *gone.each)
        rate = len(made) / added.wall * 1000
        results.add(series(contender, "rate", "1/s", at), rate)


@contextmanager
def pods(contender: Contender, count: int) -> Iterator[list[Attachment]]:
    """So many that are not attached yet; released at the end."""
    with ExitStack() as stack:
        made = [contender.attachment() for _ in range(count)]
        for attachment in made:
            stack.callback(attachment.release)
        yield made
