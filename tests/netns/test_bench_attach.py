"""The attach suite really runs, with few rounds: each series has samples or says why not."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from bench.results import Results
from bench.suites import attach, growth
from bench.suites.task import Options
from bench.testbed.attachments import ATTACHMENT_TYPES

pytestmark = pytest.mark.machine  # some attachments are macvtaps
ONE = Options(quick=True, rounds=1, peers=("other=/usr/lib/cni/bridge", "mute=/bin/true"))


@pytest.fixture(scope="module")
def linux() -> Results:
    """All measurements without a switch, but for those that only run more processes at once."""
    results = Results()
    with ExitStack() as stack:
        for task in attach.LinuxScenario(ONE, results, stack).tasks():
            if task.name not in ("32 at once", "50 DELs at once"):
                task.run()
    return results


def samples(results: Results, **wanted: object) -> dict[str, list[float]]:
    return {s.contender: s.samples for s in results.series if wanted.items() <= vars(s).items()}


def test_every_attachment_type_has_all_three_verbs(linux: Results) -> None:
    expected = {kind.name for kind in ATTACHMENT_TYPES if not kind.switch}
    expected |= {"bridge", "ptp", "other"}
    for metric in ("add", "check", "del"):
        found = samples(linux, metric=metric, at={"switch": "linux", "parallel": 1})
        measured = {name for name, ms in found.items() if len(ms) == 1 and ms[0] > 0}
        skipped = {kind.name for kind in ATTACHMENT_TYPES if kind.missing()}
        assert expected - measured <= skipped, metric


def test_a_plugin_that_prints_nothing_is_no_peer(linux: Results) -> None:
    (told,) = (s for s in linux.series if s.contender == "mute")
    assert told.samples == []
    assert "ADD printed no result" in told.note


def test_the_floor_is_the_kernel_and_a_process_that_does_nothing(linux: Results) -> None:
    for metric, expected in (("add", {"kernel alone", "/bin/true"}), ("del", {"kernel alone"})):
        found = samples(linux, metric=metric, role="floor")
        assert set(found) == expected
        assert all(ms > 0 for (ms,) in found.values())


def test_the_floor_of_a_burst_is_of_as_many(linux: Results) -> None:
    at = {"switch": "linux", "parallel": attach.BURST}
    ((wall,),) = samples(linux, metric="burst_del", role="floor", at=at).values()
    (one,) = samples(linux, metric="del", at={"switch": "linux", "parallel": 1})["kernel alone"]
    assert wall > one


def test_at_once_there_is_a_rate_and_the_latency_of_each(linux: Results) -> None:
    at = {"switch": "linux", "parallel": 8}
    assert all(len(ms) == 16 for ms in samples(linux, metric="add", at=at).values())
    assert set(samples(linux, metric="rate", at=at)) == {"tc-linux", "bridge", "ptp", "other"}


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_the_parts_of_a_call_are_its_steps_and_what_is_around_them(
    linux: Results, verb: str
) -> None:
    parts = {
        s.metric.partition(":")[2]: s.samples[0]
        for s in linux.series
        if s.metric.startswith("part:") and s.at == {"switch": "linux", "verb": verb}
    }
    assert {"client", "queue", "engine", "Veth", "Tap", "Redirect"} <= set(parts)
    assert parts["client"] > 0
    assert parts["engine"] > 0


def test_a_node_that_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "SETTLE", 0)
    results = Results()
    with ExitStack() as stack:
        scenario = growth.LinuxGrowth(ONE, results, stack)
        for count in (1, 3):
            scenario.measure(count)
        assert len([c for c in scenario.node.contents() if "state" in c]) == 3
    for metric in ("add", "memory", "cpu"):
        found = [s for s in results.series if s.metric == metric and s.contender == "tc-linux"]
        assert [s.at["present"] for s in found] == [1, 3]
        assert all(s.samples[0] > 0 for s in found)
