"""One real round of the benchmarks that attach ports to Open vSwitch."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from bench.results import Results
from bench.suites import attach, growth
from bench.suites.scenario import Scenario
from bench.suites.task import Options
from bench.testbed import switch
from tests.ovs.ovskit import switch_of


@pytest.mark.skipif(bool(switch.missing()), reason=switch.missing())
def test_ports_beside_those_of_ovs_vsctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "SETTLE", 0)
    monkeypatch.setattr(growth, "BURST", 3)
    monkeypatch.setattr(growth, "POOL_SIZE", 2)
    options, results = Options(quick=True, rounds=1), Results()
    with ExitStack() as stack:
        scenario = growth.OvsGrowth(options, results, stack)
        # The contenders' ports are gone; those that fill the bridge and those in the pool remain.
        scenario.measure(2)
        assert ports(scenario) == 2 + 2 + len(["ovs0"])
        scenario.measure_burst({"present": 2})
        assert ports(scenario) == 2 + 2 + len(["ovs0"])
    for metric in ("add", "burst_add"):
        names = {s.contender for s in results.series if s.metric == metric and s.samples}
        assert {"tap-ovs", growth.WITH_POOL, "ovs-vsctl"} <= names


def ports(scenario: growth.OvsGrowth) -> int:
    scenario.settle()
    return len([row for row in switch_of(scenario.node).rows() if row.startswith("Port")])


@pytest.mark.parametrize(
    ("scenario", "names"),
    [
        (attach.DpdkScenario, {"vhostuser-ovs"}),
        (attach.OvsScenario, {"tc-ovs", "tap-ovs", "veth-ovs"}),
        (growth.OvsGrowth, set()),
    ],
)
def test_what_cannot_be_had_is_told_and_no_task(
    monkeypatch: pytest.MonkeyPatch, scenario: type[Scenario], names: set[str]
) -> None:
    monkeypatch.setattr(switch, "missing", lambda *_, **__: "no such package")
    results = Results()
    with ExitStack() as stack:
        assert scenario(Options(), results, stack).tasks() == []
    assert {s.contender for s in results.series} == names
    assert all(s.note == "no such package" and not s.samples for s in results.series)
