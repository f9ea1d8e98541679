"""One real round of the benchmarks that attach ports to Open vSwitch."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from bench.report.results import Options, Results
from bench.suites import attach, growth
from bench.suites.rounds import Part
from bench.testbed import switch
from tests.ovs.ovskit import switch_of


@pytest.mark.skipif(bool(switch.missing()), reason=switch.missing())
def test_ports_beside_those_of_ovs_vsctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "SETTLE", 0)
    monkeypatch.setattr(growth, "BURST", 3)
    monkeypatch.setattr(growth, "KITS", 2)
    options, results = Options(quick=True, rounds=1), Results()
    with ExitStack() as stack:
        part = growth.OnOvs(options, results, stack)
        # The contenders' ports are gone; those that fill the bridge and the kits remain.
        part._measure(2)
        assert ports(part) == 2 + 2 + len(["ovs0"])
        part._burst({"present": 2})
        assert ports(part) == 2 + 2 + len(["ovs0"])
    for metric in ("add", "burst_add"):
        names = {s.contender for s in results.series if s.metric == metric and s.samples}
        assert {"tap-ovs", growth.POOLED, "ovs-vsctl"} <= names


def ports(part: growth.OnOvs) -> int:
    part._quiet()
    return len([row for row in switch_of(part.node).rows() if row.startswith("Port")])


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (attach.OnDpdk, {"vhostuser-ovs"}),
        (attach.OnOvs, {"tc-ovs", "tap-ovs", "veth-ovs"}),
        (growth.OnOvs, set()),
    ],
)
def test_what_cannot_be_had_is_told_and_no_task(
    monkeypatch: pytest.MonkeyPatch, part: type[Part], told: set[str]
) -> None:
    monkeypatch.setattr(switch, "missing", lambda dpdk=False: "no such package")
    results = Results()
    with ExitStack() as stack:
        assert part(Options(), results, stack).tasks() == []
    assert {s.contender for s in results.series} == told
    assert all(s.note == "no such package" and not s.samples for s in results.series)
