"""One real guest through every measurement of `bench datapath`, at its baseline."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from bench.contenders.datapaths import BridgeAndTap, Endpoints
from bench.results import Results
from bench.suites.datapath_metrics import UNITS, Effort, Measurement
from bench.suites.datapath_node import DatapathNode
from bench.testbed.cpu_time import vcpu_seconds

EFFORT = Effort(passes=1, tcp_seconds=0.1, udp_seconds=0.1, round_trips=50)


def asleep(ends: Endpoints) -> int:
    """Wait until the guest is stopped; return its process id."""
    (guest,) = ends.guests
    os.waitid(os.P_PID, guest.pid, os.WSTOPPED | os.WNOWAIT)
    return guest.pid


def test_the_baseline_is_measured_and_given_back() -> None:
    results = Results()
    with ExitStack() as stack:
        node = DatapathNode("", results, stack)
        baseline = node.measure_tasks([Measurement(BridgeAndTap("linux"))], EFFORT)
        tasks = [node.start_task(), *baseline, node.end_task()]
        for task in tasks[:-1]:
            task.run()
        pid = asleep(node._endpoints["bridge-tap-linux"])
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
