"""One real guest through every measurement of `bench datapath`, at its baseline."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from bench.contenders.pairs import Bridged, Pair
from bench.report.results import Results
from bench.suites.contest import Contest
from bench.suites.cputime import vcpu_seconds
from bench.suites.visit import UNITS, Effort, Entry

EFFORT = Effort(passes=1, flow=0.1, flood=0.1, asked=50)


def asleep(pair: Pair) -> int:
    """Wait until the pair's guest is stopped; return its process id."""
    (guest,) = pair.guests
    os.waitid(os.P_PID, guest.pid, os.WSTOPPED | os.WNOWAIT)
    return guest.pid


def test_the_baseline_is_measured_and_given_back() -> None:
    results = Results()
    with ExitStack() as stack:
        contest = Contest("", results, stack)
        tasks = [contest.begin(), *contest.passes([Entry(Bridged("linux"))], EFFORT), contest.end()]
        for task in tasks[:-1]:
            task.run()
        pid = asleep(contest._pairs["bridge-tap-linux"])
        spent = vcpu_seconds(pid)
        assert spent > 0
        assert vcpu_seconds(pid) == spent
        tasks[-1].run()
        assert not Path(f"/proc/{pid}").exists()
    assert [s.note for s in results.series if not s.samples] == []
    assert {s.metric for s in results.series} == set(UNITS)
    for series in results.series:
        least = -0.05 if series.metric == "cpu_per_gb" else 0
        assert min(series.samples) >= least, series.metric
        assert series.metric.startswith(("loss", "cpu")) or min(series.samples) > 0, series.metric
