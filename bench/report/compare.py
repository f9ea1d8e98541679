"""Compare two results, and say which differences are more than noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench.report import formats, stats, tables
from bench.report.document import Document
from bench.results import Series

COLUMNS = ("", "A p50", "B p50", "B/A", "to baseline", "verdict")
LEGEND = (
    "better, worse: the middle halves of the samples do not overlap. within the spread: they do, "
    f"and the difference says nothing. too few: less than {stats.FOR_SPREAD} samples. to baseline: "
    "B/A of the ratio to the baseline, which a faster or busier machine changes less."
)
_WARNING = "These differences alone may change the figures."
_OF_THE_RUN = ("started", "seconds", "interrupted", "failed", "not_run", "left_behind")
_VERDICTS = {True: "better", False: "worse", None: "within the spread"}
_Counterparts = tuple[Series, Series]  # of A and of B


def render(a: Document, b: Document) -> str:
    """The comparison as text for a terminal."""
    differences = list(_differences("", a.about, b.about))
    lines = [*differences, _WARNING, ""] if differences else []
    counterparts = list(_counterparts(a.series, b.series))
    groups: dict[str, list[tuple[str, ...]]] = {}
    for old, new in counterparts:
        title = f"{old.suite}: {tables.title(old)} ({old.unit})"
        groups.setdefault(title, []).append(_row(old, new, a, b))
    for title, rows in groups.items():
        lines += [title, *tables.grid([COLUMNS, *rows]), ""]
    for name, series, others in (("A", a.series, b.series), ("B", b.series, a.series)):
        alone = [s for s in series if s.samples and not any(_same(s, o) for o in others)]
        lines += [f"only in {name}: {len(alone)} series"] if alone else []
    return "\n".join([*lines, *_machine_changed(counterparts), LEGEND]) + "\n"


def _same(a: Series, b: Series) -> bool:
    return bool(b.samples) and a.contender == b.contender and stats.same_conditions(a, b)


def _counterparts(a: Sequence[Series], b: Sequence[Series]) -> Iterator[_Counterparts]:
    for old in a:
        for new in b:
            if old.samples and _same(old, new) and old.unit == new.unit:
                yield old, new


def _row(old: Series, new: Series, a: Document, b: Document) -> tuple[str, ...]:
    summaries = (stats.summary(old), stats.summary(new))
    numbers = [formats.number(each.p50) for each in summaries if each]
    ratios = (
        stats.ratio(old, stats.baseline(old, a.series)),
        stats.ratio(new, stats.baseline(new, b.series)),
    )
    relative = ratios[1] / ratios[0] if ratios[0] and ratios[1] is not None else None
    changes = map(formats.ratio, (stats.ratio(new, old), relative))
    return (tables.row_name(old), *numbers, *changes, _verdict(old, new))


def _verdict(old: Series, new: Series) -> str:
    a, b = stats.summary(old), stats.summary(new)
    if not a or not b or min(a.n, b.n) < stats.FOR_SPREAD:
        return "too few"
    return _VERDICTS[stats.better(a, b, old.unit)]


def _machine_changed(counterparts: Sequence[_Counterparts]) -> list[str]:
    """A warning when series differ that vmlink has no influence on."""
    others = [_verdict(old, new) for old, new in counterparts if old.role != "vmlink"]
    changed = sum(verdict in ("better", "worse") for verdict in others)
    if not changed:
        return []
    return [
        f"{changed} of {len(others)} series that are not of vmlink differ too: the machine or its "
        "load was not the same. Look at the column to baseline."
    ]


def _differences(where: str, a: Any, b: Any) -> Iterator[str]:
    """Differences of machine, versions and options, one line each."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys((*a, *b)):
            if where or key not in _OF_THE_RUN:
                yield from _differences(f"{where}{key} ", a.get(key), b.get(key))
    elif a != b:
        yield f"{where.strip()}: A {a}, B {b}"
