"""Contenders of `bench attach` take turns, and a peer that fails is reported and left out."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from bench.results import Results
from bench.suites.rounds import measure_in_turns, measure_once, no_wait, turns, usable
from bench.suites.scenario import Scenario
from bench.suites.task import Options


@dataclass
class Fake:
    """A contender and its attachment in one. `there` counts what is not released yet."""

    name: str
    role: str = "vmlink"
    verbs: tuple[str, ...] = ("ADD", "DEL")
    fails: str = ""
    calls: tuple[str, ...] = ()
    there: int = 0

    def attachment(self) -> Fake:
        self.there += 1
        return self

    def call(self, verb: str) -> float:
        assert verb != self.fails, "exit code 7"
        self.calls += (verb,)
        return 1.5

    def release(self) -> None:
        self.there -= 1


def test_each_is_once_in_a_round_and_comes_after_every_other() -> None:
    found = [Fake(name) for name in "abc"]
    order = [each.name for each in turns(found, 30)]
    rounds = [order[n : n + 3] for n in range(0, 90, 3)]
    assert all(sorted(one) == [*"abc"] for one in rounds)
    pairs = {(a, b) for a, b in itertools.pairwise(order) if a != b}
    assert pairs == {(a, b) for a in "abc" for b in "abc" if a != b}
    assert order == [each.name for each in turns(found, 30)]


def test_every_verb_of_every_round_is_a_sample() -> None:
    results, one, other = Results(), Fake("one"), Fake("other", verbs=("ADD",))
    measure_in_turns([one, other], 3, results, {"present": 7})
    found = {(s.contender, s.metric, s.at["present"]): s.samples for s in results.series}
    assert found == {
        ("one", "add", 7): [1.5] * 3,
        ("one", "del", 7): [1.5] * 3,
        ("other", "add", 7): [1.5] * 3,
    }


def test_what_is_around_a_call_is_given_back_when_it_fails() -> None:
    broken = Fake("broken", fails="DEL")
    with pytest.raises(AssertionError):
        measure_once(broken, Results(), {}, no_wait)
    assert broken.there == 0


def test_a_peer_that_fails_is_told_and_left_out() -> None:
    results, good, broken = Results(), Fake("good"), Fake("broken", "peer", fails="ADD")
    assert usable([good, broken], results, {}) == [good]
    (told,) = results.series
    assert (told.contender, told.samples) == ("broken", [])
    assert "exit code 7" in told.note


def test_vmlink_itself_must_not_fail() -> None:
    with pytest.raises(AssertionError):
        usable([Fake("ours", fails="DEL")], Results(), {})


@pytest.mark.parametrize(
    ("options", "expected"), [(Options(), 150), (Options(quick=True), 10), (Options(True, 3), 3)]
)
def test_rounds_that_a_user_asks_for_come_first(options: Options, expected: int) -> None:
    with ExitStack() as stack:
        assert Scenario(options, Results(), stack).rounds == expected
