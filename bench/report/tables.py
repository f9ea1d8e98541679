"""Results as tables: one for each metric and conditions, and all of them for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.report import formats, labels, stats
from bench.report.document import Document
from bench.results import Series
from cni.plugins.table import columns as aligned

COLUMNS = ("", "p50", "p90", "p99", "p99.9", "worst", "n", "ratio")
_NAMED = 3  # how many of the tasks that were not run are named
LEGEND = (
    f"p90: 90 percent of the samples were that good or better; needs {stats.FOR_P90} samples, p99 "
    f"{stats.FOR_P99}, p99.9 {stats.FOR_P999}. ratio: of medians, to the baseline under the same "
    "conditions."
)


@dataclass(frozen=True)
class Block:
    """A table with its title and notes for the reader; it has those of COLUMNS that have values."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str]


def blocks(series: Sequence[Series], among: Sequence[Series]) -> list[Block]:
    """A table for each metric and conditions of the series; baselines are looked up in `among`."""
    groups: dict[tuple[str, str], list[Series]] = {}
    for each in series:
        if each.samples:
            groups.setdefault((title(each), each.unit), []).append(each)
    return [_block(name, unit, group, among) for (name, unit), group in groups.items()]


def title(series: Series) -> str:
    """The metric and its conditions; the parts of a call share one title."""
    metric = labels.PARTS if labels.is_part(series.metric) else labels.metric(series.metric)
    return ", ".join(filter(None, (metric, labels.conditions(series))))


def _block(name: str, unit: str, group: Sequence[Series], among: Sequence[Series]) -> Block:
    full = [_row(each, among) for each in group]
    kept = [n for n in range(len(COLUMNS)) if any(row[n] != "-" for row in full)]
    columns, *rows = [tuple(row[n] for n in kept) for row in (COLUMNS, *full)]
    baselines = dict.fromkeys(
        base.contender
        for each in group
        if (base := stats.baseline(each, among)) and base is not each
    )
    about = [unit, "more is better"] if stats.higher_is_better(unit) else [unit]
    about += [f"baseline {' or '.join(baselines)}"] if baselines else []
    notes = dict.fromkeys(f"{each.contender}: {each.note}" for each in group if each.note)
    return Block(f"{name} ({', '.join(about)})", columns, rows, list(notes))


def _row(series: Series, among: Sequence[Series]) -> tuple[str, ...]:
    summary = stats.summary(series)
    assert summary
    ratio = stats.ratio(series, stats.baseline(series, among))
    values = (summary.p50, summary.p90, summary.p99, summary.p999, summary.worst)
    numbers = map(formats.number, values)
    return (row_name(series), *numbers, str(summary.n), formats.ratio(ratio))


def row_name(series: Series) -> str:
    """The contender, and for a part of a call the name of the part."""
    if labels.is_part(series.metric):
        return f"{series.contender}: {series.metric.removeprefix('part:')}"
    return series.contender


def missing(document: Document) -> list[str]:
    """What could not be measured and why, one line each."""
    return list(
        dict.fromkeys(
            f"{each.contender} ({each.suite}): {each.note or 'no samples'}"
            for each in document.series
            if not each.samples
        )
    )


def problems(document: Document) -> list[str]:
    """What went wrong with the run, one sentence each."""
    about = document.about
    lines = ["The run was interrupted."] if about["interrupted"] else []
    lines += [f"{f['suite']}: {f['task']} failed: {f['error']}" for f in about["failed"]]
    if names := about["not_run"]:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        lines.append(f"Not run: {', '.join(names[:_NAMED])}{more}.")
    return lines + [f"Left behind: {what}" for what in about["left_behind"]]


def render(document: Document) -> str:
    """All tables of a document as text for a terminal."""
    lines = []
    for suite in dict.fromkeys(each.suite for each in document.series):
        own = [each for each in document.series if each.suite == suite]
        for block in blocks(own, own):
            lines += ["", f"{suite}: {block.title}", *grid([block.columns, *block.rows])]
            lines += [f"  ({note})" for note in block.notes]
    lines += ["", LEGEND]
    if not_measured := missing(document):
        lines += ["", "not measured:", *(f"  {each}" for each in not_measured)]
    if went_wrong := problems(document):
        lines += ["", *went_wrong]
    return "\n".join(lines).lstrip("\n") + "\n"


def grid(table: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines, all columns but the first aligned to the right."""
    first, *numbers = zip(*table, strict=True)
    padded = [[cell.rjust(max(map(len, column))) for cell in column] for column in numbers]
    return aligned(list(zip(first, *padded, strict=True)))
