"""Where the time of a call goes: client, queue, vmlinkd's steps, and the rest of vmlinkd."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.contenders.plugins import Plugin, series
from bench.results import Results

VERBS = ("ADD", "DEL")
_LOG_SECONDS = 5  # vmlinkd logs a call after its answer


def measure(plugin: Plugin, rounds: int, results: Results, at: Mapping[str, int | str]) -> None:
    """Add metrics part:NAME, for each step of vmlinkd and for what is around the steps.

    `client` is a whole process that asks vmlinkd for nothing (VERSION), `queue` the way to a worker
    and back, `engine` what vmlinkd does besides its steps. Raises AssertionError.
    """
    whole: dict[tuple[str, str], float] = {}
    clients: dict[str, float] = {}
    for _ in range(rounds):
        pod = plugin.attachment()
        try:
            clients[pod.container] = plugin.node.call("VERSION", plugin.conf).ms
            for verb in VERBS:
                whole[pod.container, verb] = pod.call(verb)
        finally:
            pod.release()
    for line in _wait_for_lines(plugin, whole):
        verb, client = line["verb"], clients[line["container"]]
        parts = split(line, whole[line["container"], verb], client)
        for name, ms in parts.items():
            results.add(series(plugin, f"part:{name}", "ms", {**at, "verb": verb}), ms)


def split(line: Mapping[str, Any], whole: float, client: float) -> dict[str, float]:
    """The parts of one call in ms, whose sum is `whole`; `line` is that of vmlinkd's log."""
    steps = {name.partition(".")[0]: ms for name, ms in line["steps"].items()}
    engine = line["ms"] - sum(steps.values())
    return {"client": client, "queue": whole - line["ms"] - client, "engine": engine, **steps}


def _wait_for_lines(
    plugin: Plugin, calls: Mapping[tuple[str, str], float]
) -> Sequence[dict[str, Any]]:
    end = time.monotonic() + _LOG_SECONDS
    while len(lines := [*_lines(plugin, calls)]) < len(calls):
        assert time.monotonic() < end, f"vmlinkd's log has {len(lines)} lines of {len(calls)}"
        time.sleep(0.01)
    return lines


def _lines(plugin: Plugin, calls: Mapping[tuple[str, str], float]) -> Iterator[dict[str, Any]]:
    """The lines of vmlinkd's log about these calls."""
    for text in plugin.node.log.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # a line that is being written
            continue
        if (line.get("container"), line.get("verb")) in calls:
            yield line
