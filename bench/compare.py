"""Two results beside each other, and which differences are more than noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench import stats, tables, words
from bench.document import Document
from bench.results import Series

COLUMNS = ("", "A p50", "B p50", "B/A", "verdict")
LEGEND = (
    "better, worse: the middle halves of the samples do not overlap. within the spread: they do, "
    f"and the difference says nothing. too few: less than {stats.FOR_SPREAD} samples."
)
_WARNING = "The conditions differ as told above; so may the figures for that reason alone."
_OF_THE_RUN = ("started", "seconds", "interrupted", "failed", "not_run", "left_behind")


def render(a: Document, b: Document) -> str:
    """For a terminal."""
    differ = list(_differences("", a.about, b.about))
    lines = [*differ, _WARNING, ""] if differ else []
    groups: dict[str, list[tuple[str, ...]]] = {}
    for old, new in _pairs(a.series, b.series):
        groups.setdefault(f"{old.suite}: {tables.title(old)} ({old.unit})", []).append(
            _row(old, new)
        )
    for title, rows in groups.items():
        lines += [title, *tables.grid([COLUMNS, *rows]), ""]
    for name, found, others in (("A", a.series, b.series), ("B", b.series, a.series)):
        alone = [s for s in found if s.samples and not any(_same(s, o) for o in others)]
        lines += [f"only in {name}: {len(alone)} series"] * bool(alone)
    return "\n".join([*lines, LEGEND]) + "\n"


def _same(a: Series, b: Series) -> bool:
    return bool(b.samples) and a.contender == b.contender and stats.same_conditions(a, b)


def _pairs(a: Sequence[Series], b: Sequence[Series]) -> Iterator[tuple[Series, Series]]:
    for old in a:
        for new in b:
            if old.samples and _same(old, new) and old.unit == new.unit:
                yield old, new


def _row(old: Series, new: Series) -> tuple[str, ...]:
    a, b = stats.summary(old), stats.summary(new)
    assert a
    assert b
    verdict = {True: "better", False: "worse", None: "within the spread"}[
        stats.better(a, b, old.unit)
    ]
    if min(a.n, b.n) < stats.FOR_SPREAD:
        verdict = "too few"
    change = words.ratio(stats.ratio(new, old))
    return (tables.row_name(old), words.number(a.p50), words.number(b.p50), change, verdict)


def _differences(where: str, a: Any, b: Any) -> Iterator[str]:
    """Of machine, versions and options."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys((*a, *b)):
            if where or key not in _OF_THE_RUN:
                yield from _differences(f"{where}{key} ", a.get(key), b.get(key))
    elif a != b:
        yield f"{where.strip()}: A {a}, B {b}"
