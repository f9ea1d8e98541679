"""Describe, then apply: a Plan is a list of Steps, applied in order and undone in reverse.

A step is a frozen dataclass of plain values, so a plan can be stored before its first step is
done and undone by another process. There is no other clean-up path.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from cni.attach.context import Context
from cni.errors import CheckFailed
from cni.spec.types import AttachmentKey

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

    def bind(self, cx: Context) -> None:
        """What only the pod decides, where the pool has done the rest. Fields of that are left out
        of comparisons (`compare=False`): steps that are equal can stand for each other."""

    def renew(self, cx: Context, former: AttachmentKey) -> None:
        """The opposite: what `former` had is as new for another pod; `cx` is the kit's. Raises
        CheckFailed where that cannot be proved."""
        raise CheckFailed(f"{type(self).__name__}: what a pod has had is not used again")

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
    """`prepare` needs no pod: it can be done ahead. `bind` is what only the pod decides."""

    prepare: tuple[Step, ...]
    bind: tuple[Step, ...]

    @property
    def parts(self) -> tuple[tuple[Step, ...], tuple[Step, ...], tuple[Step, ...]]:
        """In their order: what can run beside the others is started first."""
        first = tuple(s for s in self.bind if s.background)
        return first, self.prepare, tuple(s for s in self.bind if not s.background)

    @property
    def steps(self) -> tuple[Step, ...]:
        """Both halves at once."""
        first, prepare, rest = self.parts
        return first + prepare + rest

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


def apply(plan: Plan, cx: Context, commit: Callable[[], T]) -> T:
    """Do the steps, then `commit`. On any exception what was begun is undone in reverse, and the
    first error raised; `cx.clean` tells whether every undo succeeded. What the pool has prepared
    is bound, and goes as well."""
    ahead = plan.prepare if cx.key.kit else ()
    begun = 0
    try:
        for step in plan.steps:
            cx.cancel.check()
            begun += 1
            _timed(cx, step, step.bind if step in ahead else step.do)
        cx.cancel.check()
        return commit()
    except BaseException:
        cx.cancel.disarm()
        made, rest = plan.steps[:begun], plan.steps[begun:]
        cx.clean = not _undo((*made, *(step for step in rest if step in ahead)), cx)
        raise


def revert(plan: Plan, cx: Context, kept: Callable[[], bool] = lambda: False) -> None:
    """Undo the steps in reverse. Every undo is tried; the first error is raised at the end. What
    is prepared stays if it is `kept`, which is asked in its turn."""
    first, prepare, rest = plan.parts
    errors = _undo(rest, cx)
    if errors or not kept():
        errors += _undo(prepare, cx)
    errors += _undo(first, cx)
    if errors:
        raise errors[0]


def verify(steps: Iterable[Step], cx: Context) -> None:
    """Raise CheckFailed for the first step whose work is not as it was left."""
    for step in steps:
        cx.cancel.check()
        _timed(cx, step, step.check)


def _undo(steps: Sequence[Step], cx: Context) -> list[Exception]:
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
