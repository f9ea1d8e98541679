"""Plans: the order of steps, undo, errors, and what makes a plan incoherent."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import pytest

from cni.attach import plan
from cni.attach.context import Context
from cni.attach.facts import Fact
from cni.attach.plan import IncoherentPlan, Kinds, Plan, Step
from cni.errors import CheckFailed, ClientGone, DeadlineExceeded
from cni.spec.types import AttachmentKey
from tests.unit.purekit import context


@dataclass(frozen=True)
class Notes(Fact):
    """What was done, in order."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Noted(Step):
    """Records each call of itself in the facts, and fails at those that `fails` names."""

    name: str
    fails: str = ""

    def _note(self, cx: Context, what: str) -> None:
        cx.facts.put(Notes((*lines(cx), f"{what} {self.name}")))
        if what in self.fails.split():
            raise KeyError(f"{what} {self.name}")

    def do(self, cx: Context) -> None:
        self._note(cx, "do")

    def undo(self, cx: Context) -> None:
        self._note(cx, "undo")

    def bind(self, cx: Context) -> None:
        self._note(cx, "bind")

    def check(self, cx: Context) -> None:
        self._note(cx, "check")


@dataclass(frozen=True)
class NotedFirst(Noted):
    background: ClassVar[bool] = True


def of(*bind: Step, prepare: Iterable[Step] = ()) -> Plan:
    return Plan(tuple(prepare), bind)


def notes(cx: Context) -> list[str]:
    return [line.replace(" ", "") for line in lines(cx)]


def lines(cx: Context) -> tuple[str, ...]:
    known = cx.facts.get(Notes)
    return known.lines if known else ()


def test_apply_does_in_order_and_returns_what_commit_returns() -> None:
    cx = context()
    assert plan.apply(of(Noted("1"), Noted("2")), cx, lambda: notes(cx)) == ["do1", "do2"]
    assert cx.clean
    assert set(cx.timings) == {"Noted.do"}


@pytest.mark.parametrize(
    ("one", "two", "commit", "told", "done", "clean"),
    [
        ("", "do", "", "do 2", "do1 do2 undo2 undo1", True),
        ("do", "", "", "do 1", "do1 undo1", True),
        ("", "", "commit", "commit", "do1 do2 undo2 undo1", True),
        ("undo", "do", "", "do 2", "do1 do2 undo2 undo1", False),
        ("", "do undo", "", "do 2", "do1 do2 undo2 undo1", False),
        ("undo", "undo", "commit", "commit", "do1 do2 undo2 undo1", False),
    ],
)
def test_a_failure_undoes_what_was_begun(
    one: str, two: str, commit: str, told: str, done: str, clean: bool
) -> None:
    cx = context()

    def fail() -> None:
        if commit:
            raise KeyError(commit)

    with pytest.raises(KeyError) as error:
        plan.apply(of(Noted("1", one), Noted("2", two)), cx, fail)
    assert error.value.args == (told,)
    assert notes(cx) == done.split()
    assert cx.clean is clean


@dataclass(frozen=True)
class Interrupted(Noted):
    def do(self, cx: Context) -> None:
        raise KeyboardInterrupt


def test_an_interrupt_undoes_too() -> None:
    cx = context()
    with pytest.raises(KeyboardInterrupt):
        plan.apply(of(Noted("1"), Interrupted("2")), cx, lambda: None)
    assert notes(cx) == ["do1", "undo2", "undo1"]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_caller_who_hangs_up_is_undone_whenever_that_is(after: int) -> None:
    cx: Context = context(gone=lambda: len(notes(cx)) >= after)
    with pytest.raises(ClientGone):
        plan.apply(of(Noted("1"), Noted("2")), cx, lambda: pytest.fail("committed"))
    done = [f"do{n}" for n in range(1, after + 1)]
    assert notes(cx) == done + [f"un{d}" for d in reversed(done)]


def test_undoing_has_time_of_its_own() -> None:
    cx = context(seconds=0)
    with pytest.raises(DeadlineExceeded):
        plan.apply(of(Noted("1")), cx, lambda: None)
    assert cx.cancel.remaining() > 1
    assert cx.clean


@pytest.mark.parametrize(
    ("fails", "told"), [("", ""), ("1", "undo 1"), ("2", "undo 2"), ("1 2 3", "undo 3")]
)
def test_revert_tries_every_undo_and_tells_the_first_error(fails: str, told: str) -> None:
    cx = context()
    made = of(*(Noted(n, "undo" if n in fails else "") for n in "123"))
    if told:
        with pytest.raises(KeyError) as error:
            plan.revert(made, cx)
        assert error.value.args == (told,)
    else:
        plan.revert(made, cx)
    assert notes(cx) == ["undo3", "undo2", "undo1"]


@pytest.mark.parametrize(
    ("fails", "done"),
    [
        ("", "do1 bind2 bind3 do4"),
        ("bind", "do1 bind2 undo3 undo2 undo1"),
    ],
)
def test_what_a_pool_has_prepared_is_bound_and_goes_with_a_failure(fails: str, done: str) -> None:
    cx = context(key=AttachmentKey("c1", "eth0", "0123456789ab"))
    made = of(NotedFirst("1"), Noted("4"), prepare=(Noted("2", fails), Noted("3")))
    with nullcontext() if not fails else pytest.raises(KeyError):
        plan.apply(made, cx, lambda: None)
    assert notes(cx) == done.split()


@pytest.mark.parametrize(
    ("kept", "fails", "done"),
    [
        (True, "", "undo4 undo1"),
        (False, "", "undo4 undo3 undo2 undo1"),
        (True, "undo", "undo4 undo3 undo2 undo1"),
    ],
)
def test_what_is_prepared_is_kept_once_the_pods_part_is_undone(
    kept: bool, fails: str, done: str
) -> None:
    cx = context()
    made = of(NotedFirst("1"), Noted("4", fails), prepare=(Noted("2"), Noted("3")))
    with nullcontext() if not fails else pytest.raises(KeyError):
        plan.revert(made, cx, lambda: kept)
    assert notes(cx) == done.split()


def test_verify_stops_at_the_first_difference() -> None:
    @dataclass(frozen=True)
    class Differs(Noted):
        def check(self, cx: Context) -> None:
            raise CheckFailed(self.name)

    cx = context()
    with pytest.raises(CheckFailed, match="2"):
        plan.verify([Noted("1"), Differs("2"), Noted("3")], cx)
    assert notes(cx) == ["check1"]


def test_what_runs_beside_the_others_is_started_first() -> None:
    made = Plan(
        (Noted("1"), Noted("2")), (Noted("3"), NotedFirst("4"), Noted("5"), NotedFirst("6"))
    )
    assert [vars(step)["name"] for step in made.steps] == ["4", "6", "1", "2", "3", "5"]


@dataclass(frozen=True)
class Provides(Noted):
    provides: ClassVar[Kinds] = (Notes,)


@dataclass(frozen=True)
class Needs(Noted):
    needs: ClassVar[Kinds] = (Notes,)


@pytest.mark.parametrize(
    ("prepare", "bind"),
    [
        ((), (Needs("1"),)),
        ((), (Needs("1"), Provides("2"))),
        ((Needs("1"),), (Provides("2"),)),
        ((Needs("1"),), ()),
    ],
)
def test_a_plan_that_cannot_hold_together_is_refused(
    prepare: tuple[Step, ...], bind: tuple[Step, ...]
) -> None:
    with pytest.raises(IncoherentPlan, match="Needs needs Notes, which no step before it provides"):
        Plan(prepare, bind)
    Plan((Provides("0"), *prepare), bind)
