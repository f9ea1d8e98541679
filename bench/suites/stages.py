"""Where the time of a call goes: the client, the queue, vmlinkd's steps and the rest of vmlinkd."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.contenders.plugins import Plugin, series
from bench.report.results import Results

VERBS = ("ADD", "DEL")
_PATIENCE = 5  # seconds: vmlinkd writes its line after the answer


def measure(plugin: Plugin, rounds: int, results: Results, at: Mapping[str, int | str]) -> None:
    """Metrics part:NAME. `client` is a whole process that asks vmlinkd for nothing (VERSION),
    `queue` the way to a worker and back, `engine` what vmlinkd does besides its steps.
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
    for line in _lines(plugin, whole):
        verb, client = line["verb"], clients[line["container"]]
        parts = split(line, whole[line["container"], verb], client)
        for name, ms in parts.items():
            results.add(series(plugin, f"part:{name}", "ms", {**at, "verb": verb}), ms)


def split(line: Mapping[str, Any], whole: float, client: float) -> dict[str, float]:
    """The parts of one call, in ms, which together are `whole`; `line` is of vmlinkd's log."""
    steps = {name.partition(".")[0]: ms for name, ms in line["steps"].items()}
    engine = line["ms"] - sum(steps.values())
    return {"client": client, "queue": whole - line["ms"] - client, "engine": engine, **steps}


def _lines(plugin: Plugin, asked: Mapping[tuple[str, str], float]) -> Sequence[dict[str, Any]]:
    """Vmlinkd's lines about these calls."""
    end = time.monotonic() + _PATIENCE
    while len(found := [*_logged(plugin, asked)]) < len(asked):
        assert time.monotonic() < end, f"vmlinkd's log has {len(found)} lines of {len(asked)}"
        time.sleep(0.01)
    return found


def _logged(plugin: Plugin, asked: Mapping[tuple[str, str], float]) -> Iterator[dict[str, Any]]:
    for text in plugin.node.log.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # the end of what is just being written
            continue
        if (line.get("container"), line.get("verb")) in asked:
            yield line
