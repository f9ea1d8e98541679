"""`bench datapath`: the order of its tasks, and how it reads the output of iperf3 and traffic.c."""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import pytest

from bench.contenders.datapaths import BridgeAndTap, Endpoints, TwoVeths, VmlinkGuest
from bench.results import ROLES, Results
from bench.suites import datapath
from bench.suites.datapath_metrics import UNITS, Effort, Measurement
from bench.suites.datapath_node import DatapathNode
from bench.suites.task import Options
from bench.testbed import traffic
from bench.testbed.attachments import ATTACHMENT_TYPES
from bench.testbed.cpu_time import vcpu_seconds
from bench.testbed.guest import GuestError

EFFORT = Effort(passes=3, tcp_seconds=0.5, udp_seconds=0.1, round_trips=4)


@dataclass
class Said:
    """A host that records each command, and answers as iperf3 (`answer`) and traffic.c would."""

    answer: str
    told: list[str] = field(default_factory=list)
    fails: bool = False

    def run(self, command: str, timeout: float = 0) -> str:
        self.told.append(command)
        if self.fails:
            raise GuestError("it has gone away")
        verb = command.split()[1]
        said = {"flood": "1000 250 2000000 3000000\n", "ask": "10.0\n14.0\n12.0\n"}
        return said.get(verb, self.answer)

    def spawn(self, command: str) -> int:
        return 1

    def kill(self, group: int) -> None:
        pass


def host() -> Said:
    return Said(json.dumps({"end": {"sum_received": {"bits_per_second": 2e9, "bytes": 5 * 10**8}}}))


@dataclass
class Fake:
    """A contender. It opens `ends`, or fails to boot where there is none."""

    name: str
    ends: Endpoints | None = None
    reason: str = ""
    role: str = "vmlink"
    note: str = "a note"
    has_guest: bool = False

    def missing(self) -> str:
        return self.reason

    def open(self, node: object, container: str, stack: ExitStack) -> Endpoints:
        if not self.ends:
            raise GuestError("does not boot")
        return self.ends


def ends() -> Endpoints:
    return Endpoints(host(), host(), "10.0.0.1", "10.0.0.2", sender_pays=True)


@pytest.fixture
def results() -> Results:
    return Results()


@pytest.fixture
def bench_node(results: Results, monkeypatch: pytest.MonkeyPatch) -> DatapathNode:
    bench_node = DatapathNode("", results, ExitStack())
    monkeypatch.setattr(bench_node, "_node", object())
    return bench_node


def test_every_contender_has_its_turn_in_each_pass_and_one_is_first_once(
    bench_node: DatapathNode,
) -> None:
    entries = [Measurement(Fake(name, ends())) for name in "abc"]
    names = [task.name for task in bench_node.measure_tasks(entries, EFFORT)]
    assert names[:3] == ["a: make", "b: make", "c: make"]
    passes = [names[n : n + 3] for n in (3, 6, 9)]
    assert ["".join(name[0] for name in one) for one in passes] == ["abc", "bca", "cab"]
    assert passes[1][0] == "b: pass 2 of 3"


def test_a_visit_gives_every_metric_with_its_unit_and_conditions(
    bench_node: DatapathNode, results: Results
) -> None:
    at = {"switch": "dpdk"}
    for task in bench_node.measure_tasks(
        [Measurement(Fake("a", ends()), at)], replace(EFFORT, passes=2)
    ):
        task.run()
    found = {(s.metric, tuple(s.at.items())): s for s in results.series}
    assert {metric for metric, _ in found} == set(UNITS)
    assert found["tcp_out", (("switch", "dpdk"), ("streams", 4))].samples == [2.0, 2.0]
    assert found["pps_in", (("switch", "dpdk"),)].samples == [125.0, 125.0]
    assert found["loss_in", (("switch", "dpdk"),)].samples == [75.0, 75.0]
    assert found["rtt", (("switch", "dpdk"),)].samples == [10.0, 14.0, 12.0] * 2
    assert found["jitter", (("switch", "dpdk"),)].samples == [3.0, 3.0]
    cost = found["cpu_per_packet", (("switch", "dpdk"),)]
    assert (cost.unit, cost.samples, cost.note) == ("ns", [3000.0, 3000.0], "a note")


def test_the_warm_up_tells_how_many_bytes_a_flow_takes(bench_node: DatapathNode) -> None:
    measured = ends()
    entry = Measurement(Fake("a", measured), directions=("out",), streams=(4,))
    for task in bench_node.measure_tasks([entry], replace(EFFORT, passes=1)):
        task.run()
    assert isinstance(measured.near, Said)
    warm, flow = (c for c in measured.near.told if c.startswith("iperf3"))
    assert " -n 33554432 -P 1 " in warm
    assert " -n 125000000 -P 4 " in flow
    assert flow.endswith(" -R")


def test_what_cannot_be_measured_says_why_and_the_rest_goes_on(
    bench_node: DatapathNode, results: Results
) -> None:
    gone = ends()
    entries = [
        Measurement(Fake("absent", reason="no such kernel")),
        Measurement(Fake("broken")),
        Measurement(Fake("gone", gone)),
        Measurement(Fake("beside", ends()), sender="broken"),
        Measurement(Fake("good", ends())),
    ]
    tasks = bench_node.measure_tasks(entries, EFFORT)
    assert not any("absent" in task.name for task in tasks)
    assert isinstance(gone.near, Said)
    gone.near.fails = True
    for task in tasks:
        task.run()
    empty = {s.contender: s.note for s in results.series if not s.samples}
    assert empty == {
        "absent": "no such kernel",
        "broken": "failed: does not boot",
        "beside": "failed: broken, which is to send, could not be made",
        "gone": "failed: it has gone away",
    }
    assert len(gone.near.told) == 1, "a contender that failed must not be measured again"
    assert {s.contender for s in results.series if s.samples} == {"good"}


def test_the_suite_has_every_way_the_baselines_and_the_ceilings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kind in (VmlinkGuest, BridgeAndTap, TwoVeths):
        monkeypatch.setattr(kind, "missing", lambda _: "")
    monkeypatch.setattr("bench.testbed.switch.missing", lambda *_, **__: "")
    with ExitStack() as stack:
        tasks = datapath.tasks(Options(quick=True, rounds=3), Results(), stack)
    entries = [*datapath._redirects(), *datapath._without_dpdk(), *datapath._with_dpdk()]
    assert len({entry.name for entry in entries}) == len(entries)
    assert {entry.datapath.role for entry in entries} <= set(ROLES)
    names = {entry.datapath.name for entry in entries}
    others = {"bridge-tap-linux", "bridge-tap-ovs", "guest-loopback", "veth-linux"}
    assert names == {kind.name for kind in ATTACHMENT_TYPES} | others
    passes = Counter(t.name.partition(":")[0] for t in tasks if ": pass " in t.name)
    for entry in entries:
        turns = 3 * (datapath.REDIRECT_PASSES if entry.at.get("path") == "veth-veth" else 1)
        assert passes[entry.name] == turns
    assert all(task.seconds > 0 for task in tasks)


def test_a_program_without_named_vcpus_is_no_guest() -> None:
    with pytest.raises(ProcessLookupError, match="vCPUs"):
        vcpu_seconds(os.getpid())


def test_a_refusal_of_iperf3_is_told_after_each_port_was_tried() -> None:
    busy = host()
    busy.answer = json.dumps({"error": "the server is busy"})
    with pytest.raises(GuestError, match="busy"):
        traffic.tcp(busy, "10.0.0.2", 1)
    ports = {word for told in busy.told for word in told.split() if word.startswith("520")}
    assert len(ports) == len(busy.told) == 4


def test_jitter_is_of_neighbours() -> None:
    assert traffic.jitter([1.0, 2.0, 1.0, 4.0]) == pytest.approx(5 / 3)
