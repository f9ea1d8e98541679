"""What vmlinkd itself uses: CPU for calls, CPU when idle, memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.contenders.plugins import Contender, series
from bench.results import Results, Series
from bench.suites.rounds import measure_in_turns
from bench.suites.scenario import Scenario
from bench.testbed.cpu_time import process_ms
from bench.testbed.node import Node

IDLE_SECONDS = 3.0


def measure_with_usage(
    scenario: Scenario,
    contenders: Sequence[Contender],
    at: Mapping[str, int | str],
    settle: Callable[[], object],
) -> None:
    """Measure the contenders in turns, then CPU and memory of vmlinkd for the first of them alone.

    `settle` waits until the work that a call leaves in the background is done.
    """
    rounds, results = scenario.fewer_rounds, scenario.results
    measure_in_turns(contenders, rounds, results, at, settle)
    before, more = _cpu_ms(scenario.node), max(1, rounds // 4)
    measure_in_turns(contenders[:1], more, Results(), at, settle)
    used = (_cpu_ms(scenario.node) - before) / more
    note = "CPU of vmlinkd for ADD, CHECK and DEL together"
    results.add(series(contenders[0], "cpu", "ms", at, note), used)
    _measure_memory(scenario, contenders[0].name, at)


def measure_idle(scenario: Scenario, contender: str, at: Mapping[str, int | str]) -> None:
    """Measure the CPU of vmlinkd, in ms per second, while no call comes."""
    before = _cpu_ms(scenario.node)
    time.sleep(IDLE_SECONDS)
    used = (_cpu_ms(scenario.node) - before) / IDLE_SECONDS
    idle = Series("attach", "idle_cpu", "ms/s", contender, "vmlink", at, note="CPU of vmlinkd")
    scenario.results.add(idle, used)


def _measure_memory(scenario: Scenario, contender: str, at: Mapping[str, int | str]) -> None:
    assert scenario.node.daemon
    rollup = Path(f"/proc/{scenario.node.daemon.pid}/smaps_rollup").read_text()
    match = re.search(r"^Pss: +(\d+) kB", rollup, re.M)
    assert match, rollup
    memory = Series("attach", "memory", "MB", contender, "vmlink", at, note="PSS of vmlinkd")
    scenario.results.add(memory, int(match[1]) / 1024)


def _cpu_ms(node: Node) -> float:
    assert node.daemon
    return process_ms(node.daemon.pid)
