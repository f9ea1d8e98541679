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
from cni.attach.facts import Fact, plain_fields
from cni.errors import CheckFailed
from cni.spec.types import AttachmentKey

T = TypeVar("T")
Kinds = tuple[type[Fact], ...]


class IncoherentPlan(ValueError):
    """A step needs a fact that no step before it provides."""


@dataclass(frozen=True)
class Step:
    """One resource of an attachment: how it is made, undone and checked.

    `needs` are the facts that `do` reads, `provides` those that it puts. A step undoes what it made
    itself and nothing else; what is absent counts as undone, and half-done as done.
    """

    kinds: ClassVar[dict[str, type[Step]]] = {}
    needs: ClassVar[Kinds] = ()
    provides: ClassVar[Kinds] = ()
    background: ClassVar[bool] = False  # `do` only starts what a later step waits for

    def __init_subclass__(cls) -> None:
        if cls.do is not Step.do:  # a base of steps is none itself
            Step.kinds[cls.__name__] = cls

    def required(self) -> Kinds:
        """Return the facts that `do` reads, where these depend on the fields of the step."""
        return self.needs

    def do(self, cx: Context) -> None:
        """Make the resource. Raises VmlinkError; `undo` is called then."""
        raise NotImplementedError

    def bind(self, cx: Context) -> None:
        """Give a resource that the pool has prepared what only the pod decides.

        The fields for that are left out of comparisons (`compare=False`): of two equal steps the
        prepared one can stand for the other.
        """

    def finish(self, cx: Context) -> None:
        """Wait until what `do` has only begun is there. The pool calls it after all ports' `do`."""

    def renew(self, cx: Context, former: AttachmentKey) -> None:
        """Make what `former` had as new for another pod; `cx` is the prepared port's.

        Raises CheckFailed where that cannot be proved.
        """
        raise CheckFailed(f"{type(self).__name__}: what a pod has had is not used again")

    def undo(self, cx: Context) -> None:
        """Undo `do`. A step that only configures a link of another step has nothing to undo."""

    def check(self, cx: Context) -> None:
        """Raise CheckFailed, which says what was expected and what is there."""

    def resume(self, cx: Context) -> None:
        """Take again what only vmlinkd's memory held, when vmlinkd starts. Raises TryAgain."""

    def links(self) -> tuple[str, ...]:
        """Return the names of the links that the step makes in the pod's namespace."""
        return ()

    def to_json(self) -> dict[str, Any]:
        """Return the step's name and fields."""
        return {"step": type(self).__name__, **vars(self)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Step:
        """Read what `to_json` returned. Raises KeyError or TypeError for another version's."""
        fields = plain_fields(data)
        return Step.kinds[str(fields.pop("step"))](**fields)


@dataclass(frozen=True)
class Plan:
    """The steps of an attachment.

    `prepare` needs no pod and can be done ahead; `bind` is what only the pod decides. Raises
    IncoherentPlan where a step needs what none before it provides.
    """

    prepare: tuple[Step, ...]
    bind: tuple[Step, ...]

    def __post_init__(self) -> None:
        _require_facts(self.prepare)
        _require_facts(self.steps)

    @property
    def parts(self) -> tuple[tuple[Step, ...], tuple[Step, ...], tuple[Step, ...]]:
        """The steps in their order: what runs beside the others, `prepare`, and the rest."""
        first = tuple(s for s in self.bind if s.background)
        return first, self.prepare, tuple(s for s in self.bind if not s.background)

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps in the order in which they are done."""
        first, prepare, rest = self.parts
        return first + prepare + rest

    def pod_links(self) -> tuple[str, ...]:
        """Return the names of all links in the pod's namespace."""
        return tuple(name for step in self.steps for name in step.links())

    def to_json(self) -> dict[str, Any]:
        """Return the two halves as lists of steps."""
        return {
            "prepare": [step.to_json() for step in self.prepare],
            "bind": [step.to_json() for step in self.bind],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """Read what `to_json` returned. Raises KeyError, TypeError or IncoherentPlan."""
        prepare, bind = ([Step.from_json(s) for s in data[half]] for half in ("prepare", "bind"))
        return Plan(tuple(prepare), tuple(bind))


def _require_facts(steps: Iterable[Step]) -> None:
    provided: set[type[Fact]] = set()
    for step in steps:
        for kind in step.required():
            if kind not in provided:
                raise IncoherentPlan(
                    f"{type(step).__name__} needs {kind.__name__}, which no step before it provides"
                )
        provided.update(step.provides)


def union(plans: Iterable[Plan]) -> Plan:
    """Return the steps of all plans, for an undo that does not know which one was applied."""
    prepare: dict[Step, None] = {}
    bind: dict[Step, None] = {}
    for plan in plans:
        prepare |= dict.fromkeys(plan.prepare)
        bind |= dict.fromkeys(plan.bind)
    return Plan(tuple(prepare), tuple(bind))


def apply(plan: Plan, cx: Context, commit: Callable[[], T]) -> T:
    """Do the steps, then `commit`, and return what that returns.

    On any exception what was begun is undone in reverse, and the first error raised; `cx.clean`
    says whether every undo succeeded. What the pool has prepared is bound, and undone as well.
    """
    ahead = plan.prepare if cx.key.prepared else ()
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


def revert(plan: Plan, cx: Context, keep: Callable[[], bool] = lambda: False) -> None:
    """Undo the steps in reverse. Every undo is tried; the first error is raised at the end.

    `keep` is asked once the pod's half is undone: when it returns true, `prepare` stays.
    """
    first, prepare, rest = plan.parts
    errors = _undo(rest, cx)
    if errors or not keep():
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
        except Exception as e:  # the other steps are undone all the same
            cx.log.warning("cannot undo %s of %s: %s", step, cx.key, e)
            errors.append(e)
    return errors


def _timed(cx: Context, step: Step, action: Callable[[Context], None]) -> None:
    start = time.perf_counter()
    try:
        action(cx)
    finally:
        cx.timings[f"{type(step).__name__}.{action.__name__}"] = time.perf_counter() - start
