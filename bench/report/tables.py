"""The series as tables: a block for each metric under the same conditions, and the terminal's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.report import stats, words
from bench.report.document import Document
from bench.report.results import Series

COLUMNS = ("", "p50", "p90", "p99", "p99.9", "worst", "n", "ratio")
_NAMED = 3  # of the tasks that were not run
LEGEND = (
    f"So many percent of the samples were that good or better; p90 needs {stats.FOR_P90} of them, "
    f"p99 {stats.FOR_P99}, p99.9 {stats.FOR_P999}. ratio: of medians, to the baseline under the "
    "same conditions."
)


@dataclass(frozen=True)
class Block:
    """A table with its title; `notes` are for the reader. Of COLUMNS it has those with a value."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str]


def blocks(series: Sequence[Series], among: Sequence[Series]) -> list[Block]:
    """Of the series with samples; `among` are the baselines."""
    groups: dict[tuple[str, str], list[Series]] = {}
    for each in series:
        if each.samples:
            groups.setdefault((title(each), each.unit), []).append(each)
    return [_block(name, unit, found, among) for (name, unit), found in groups.items()]


def title(series: Series) -> str:
    """The metric and its conditions; the parts of a call are together."""
    metric = words.PARTS if words.is_part(series.metric) else words.metric(series.metric)
    return ", ".join(filter(None, (metric, words.conditions(series))))


def _block(name: str, unit: str, found: Sequence[Series], among: Sequence[Series]) -> Block:
    full = [_row(each, among) for each in found]
    kept = [n for n in range(len(COLUMNS)) if any(row[n] != "-" for row in full)]
    columns, *rows = [tuple(row[n] for n in kept) for row in (COLUMNS, *full)]
    against = dict.fromkeys(
        base.contender
        for each in found
        if (base := stats.baseline(each, among)) and base is not each
    )
    told = [unit, "more is better"] if stats.higher_is_better(unit) else [unit]
    told += [f"baseline {' or '.join(against)}"] if against else []
    notes = dict.fromkeys(f"{each.contender}: {each.note}" for each in found if each.note)
    return Block(f"{name} ({', '.join(told)})", columns, rows, list(notes))


def _row(series: Series, among: Sequence[Series]) -> tuple[str, ...]:
    found = stats.summary(series)
    assert found
    ratio = stats.ratio(series, stats.baseline(series, among))
    values = map(words.number, (found.p50, found.p90, found.p99, found.p999, found.worst))
    return (row_name(series), *values, str(found.n), words.ratio(ratio))


def row_name(series: Series) -> str:
    if words.is_part(series.metric):
        return f"{series.contender}: {series.metric.removeprefix('part:')}"
    return series.contender


def missing(document: Document) -> list[str]:
    """What could not be measured, and why."""
    return list(
        dict.fromkeys(
            f"{each.contender} ({each.suite}): {each.note or 'no samples'}"
            for each in document.series
            if not each.samples
        )
    )


def troubles(document: Document) -> list[str]:
    """What did not go well with the run, in sentences."""
    about = document.about
    found = ["The run was interrupted."] if about["interrupted"] else []
    found += [f"{f['suite']}: {f['task']} failed: {f['error']}" for f in about["failed"]]
    if names := about["not_run"]:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        found.append(f"Not run: {', '.join(names[:_NAMED])}{more}.")
    return found + [f"Left behind: {what}" for what in about["left_behind"]]


def render(document: Document) -> str:
    """All of it, for a terminal."""
    lines = []
    for suite in dict.fromkeys(each.suite for each in document.series):
        own = [each for each in document.series if each.suite == suite]
        for block in blocks(own, own):
            lines += ["", f"{suite}: {block.title}", *grid([block.columns, *block.rows])]
            lines += [f"  ({note})" for note in block.notes]
    lines += ["", LEGEND]
    if told := missing(document):
        lines += ["", "not measured:", *(f"  {each}" for each in told)]
    if told := troubles(document):
        lines += ["", *told]
    return "\n".join(lines).lstrip("\n") + "\n"


def grid(table: Sequence[Sequence[str]]) -> list[str]:
    """In columns; all but the first are numbers."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
