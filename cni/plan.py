"""Describe, then apply: a Plan is a list of Steps, applied in order and undone in reverse.

A step is a frozen dataclass of plain values, so a plan can be stored before its first step is
done and undone by another process. There is no other clean-up path.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from cni.context import Context

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One thing that is made. `undo` treats what is absent as undone, half-done as done."""

    kinds: ClassVar[dict[str, type[Step]]] = {}
    background: ClassVar[bool] = False  # `do` only starts what a later step waits for

    def __init_subclass__(cls) -> None:
        Step.kinds[cls.__name__] = cls

    def do(self, cx: Context) -> None:
        raise NotImplementedError

    def undo(self, cx: Context) -> None:
        """Nothing to undo is what a step that only configures its own links inherits."""

    def check(self, cx: Context) -> None:
        """Raise CheckFailed, saying what, expected and found."""

    def links(self) -> tuple[str, ...]:
        """Names of the links that the step makes in the pod's namespace."""
        return ()

    def to_json(self) -> dict[str, Any]:
        return {"step": type(self).__name__, **vars(self)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Step:
        fields = {k: _tuples(v) for k, v in data.items()}
        kind = str(fields.pop("step"))
        return Step.kinds[kind](**fields)


def _tuples(value: Any) -> Any:
    """JSON has lists for them."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Plan:
    """`prepare` needs no pod; `bind` is what only the pod decides."""

    prepare: tuple[Step, ...]
    bind: tuple[Step, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """Both halves at once; what can run beside the others is started first."""
        first = tuple(s for s in self.bind if s.background)
        return first + self.prepare + tuple(s for s in self.bind if not s.background)

    def pod_links(self) -> tuple[str, ...]:
        return tuple(name for step in self.steps for name in step.links())

    def to_json(self) -> dict[str, Any]:
        return {
            "prepare": [s.to_json() for s in self.prepare],
            "bind": [s.to_json() for s in self.bind],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        prepare, bind = ([Step.from_json(s) for s in data[half]] for half in ("prepare", "bind"))
        return Plan(tuple(prepare), tuple(bind))


def union(plans: Iterable[Plan]) -> Plan:
    """For an undo that does not know which one was applied."""
    prepare: dict[Step, None] = {}
    bind: dict[Step, None] = {}
    for plan in plans:
        prepare |= dict.fromkeys(plan.prepare)
        bind |= dict.fromkeys(plan.bind)
    return Plan(tuple(prepare), tuple(bind))


def apply(steps: Iterable[Step], cx: Context, commit: Callable[[], T]) -> T:
    """Do the steps, then `commit`. On any exception what was begun is undone in reverse, and the
    first error raised; `cx.clean` tells whether every undo succeeded."""
    begun: list[Step] = []
    try:
        for step in steps:
            cx.cancel.check()
            begun.append(step)
            _timed(cx, step, step.do)
        cx.cancel.check()
        return commit()
    except BaseException:
        cx.cancel.disarm()
        cx.clean = not _undo(begun, cx)
        raise


def revert(steps: Iterable[Step], cx: Context) -> None:
    """Undo the steps in reverse. Every undo is tried; the first error is raised at the end."""
    errors = _undo(list(steps), cx)
    if errors:
        raise errors[0]


def verify(steps: Iterable[Step], cx: Context) -> None:
    """Raise CheckFailed for the first step whose work is not as it was left."""
    for step in steps:
        cx.cancel.check()
        _timed(cx, step, step.check)


def _undo(steps: list[Step], cx: Context) -> list[Exception]:
    errors: list[Exception] = []
    for step in reversed(steps):
        try:
            _timed(cx, step, step.undo)
        except Exception as e:
            cx.log.warning("undo of %s: %s", step, e)
            errors.append(e)
    return errors


def _timed(cx: Context, step: Step, action: Callable[[Context], None]) -> None:
    start = time.perf_counter()
    try:
        action(cx)
    finally:
        cx.timings[f"{type(step).__name__}.{action.__name__}"] = time.perf_counter() - start
