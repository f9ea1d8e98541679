"""Contenders in turns, one call at a time or many at once, and how long their calls take."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.contenders.plugins import Attachment, Contender, series
from bench.results import Results
from bench.suites.scenario import Scenario

METRICS = {"ADD": "add", "CHECK": "check", "DEL": "del"}


def no_wait() -> None:
    """The `settle` for contenders that leave no work in the background."""


def usable(
    contenders: Sequence[Contender], results: Results, at: Mapping[str, int | str]
) -> list[Contender]:
    """Call each contender once, which fills its caches; returns those that work.

    A series without samples says why a peer failed. Raises AssertionError when another fails.
    """
    working: list[Contender] = []
    for contender in contenders:
        try:
            measure_once(contender, Results(), {}, no_wait)
        except AssertionError as e:
            if contender.role != "peer":
                raise
            results.add(series(contender, METRICS["ADD"], "ms", at, f"failed: {e}"))
        else:
            working.append(contender)
    return working


def measure_in_turns(
    contenders: Sequence[Contender],
    rounds: int,
    results: Results,
    at: Mapping[str, int | str],
    settle: Callable[[], object] = no_wait,
) -> None:
    """Attach and detach a pod of each contender in every round.

    `settle` waits until the work that a call leaves in the background is done.
    """
    for contender in turns(contenders, rounds):
        measure_once(contender, results, at, settle)


def turns(contenders: Sequence[Contender], rounds: int) -> Iterator[Contender]:
    """Each contender once in a round; the order changes from round to round, not from run to run.

    The order matters, since a contender finds the caches full of its predecessor's data.
    """
    shuffled = random.Random(0)
    for number in range(rounds):
        yield from shuffled.sample(contenders, len(contenders)) if number else contenders


def measure_once(
    contender: Contender,
    results: Results,
    at: Mapping[str, int | str],
    settle: Callable[[], object],
) -> None:
    """Make all calls of a contender for one pod. Raises AssertionError when one fails."""
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
    """Many calls at once: milliseconds of each, and until the last has ended."""

    each: list[float]
    wall: float


def call_at_once(attachments: Sequence[Attachment], verb: str, parallel: int) -> Burst:
    """Call all attachments, `parallel` at a time. Raises AssertionError when one fails."""
    with ThreadPoolExecutor(parallel) as pool:
        start = time.perf_counter()
        each = list(pool.map(lambda attachment: attachment.call(verb), attachments))
        return Burst(each, (time.perf_counter() - start) * 1000)


def measure_bursts(scenario: Scenario, contenders: Sequence[Contender], parallel: int) -> None:
    """Measure ADD and DEL, `parallel` calls at a time: the latency of each, and ADDs per second."""
    at, results = scenario.at(parallel=parallel), scenario.results
    for contender in turns(contenders, scenario.bursts):
        with pods(contender, 2 * parallel) as attachments:
            added = call_at_once(attachments, "ADD", parallel)
            deleted = call_at_once(attachments, "DEL", parallel)
        results.add(series(contender, "add", "ms", at), *added.each)
        results.add(series(contender, "del", "ms", at), *deleted.each)
        rate = len(attachments) / added.wall * 1000
        results.add(series(contender, "rate", "1/s", at), rate)


@contextmanager
def pods(contender: Contender, count: int) -> Iterator[list[Attachment]]:
    """Pods that are not attached yet, released at the end."""
    with ExitStack() as stack:
        attachments = [contender.attachment() for _ in range(count)]
        for attachment in attachments:
            stack.callback(attachment.release)
        yield attachments
