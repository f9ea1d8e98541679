"""Curves over how much is there already, and bars made of parts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from bench import palette, stats, words
from bench.charts import Chart, Panel
from bench.palette import LIGHT
from bench.results import Series

_LOG_FROM = 12
_TINTS = [LIGHT[name] for name in LIGHT if name.startswith("part")]
_ROOM = 0.016  # of the widest bar, for a letter


def growth(chart: Chart) -> Figure:
    """A panel beneath the other; each curve is named at its end."""
    figure = Figure((7.6, 3.4 * len(chart.panels)))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(len(chart.panels), squeeze=False)
    for (ax,), panel in zip(axes, chart.panels, strict=True):
        _curves(ax, panel, chart.unit)
    return figure


def _curves(ax: Any, panel: Panel, unit: str) -> None:
    names = dict.fromkeys(series.contender for series in panel.series)
    points = {name: _points(name, panel) for name in names}
    high = max(s.high for curve in points.values() for _, s in curve)
    low = min(s.low for curve in points.values() for _, s in curve)
    if low > 0 and high / low > _LOG_FROM:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_formatter(lambda *_: "")
    else:
        ax.set_ylim(0, high * 1.1 or 1)
    ax.set_xlim(0, max(present for curve in points.values() for present, _ in curve) * 1.04)
    ends = []
    for name, curve in points.items():
        series = next(s for s in panel.series if s.contender == name)
        ends.append((_curve(ax, series, curve), series))
    _name(ax, ends)
    ax.grid(axis="both")
    ax.tick_params(axis="y", colors=LIGHT["muted"], labelsize=8.5)
    ax.set_title(panel.title or " ")
    ax.set_xlabel("attachments there already")
    ax.set_ylabel(f"{unit}, median and middle half")


def _points(name: str, panel: Panel) -> list[tuple[int, stats.Summary]]:
    found = [
        (int(series.at["present"]), told)
        for series in panel.series
        if series.contender == name and (told := stats.summary(series))
    ]
    return sorted(found, key=lambda point: point[0])


def _curve(
    ax: Any, series: Series, points: Sequence[tuple[int, stats.Summary]]
) -> tuple[int, float]:
    """Where it ends."""
    tint = LIGHT[palette.role(series.role)]
    there = [present for present, _ in points]
    ax.fill_between(
        there, [s.low for _, s in points], [s.high for _, s in points], color=tint, alpha=0.18, lw=0
    )
    ax.plot(there, [s.p50 for _, s in points], color=tint, lw=2, marker="o", ms=4)
    present, last = points[-1]
    return present, last.p50


def _name(ax: Any, ends: Sequence[tuple[tuple[int, float], Series]]) -> None:
    """Right of where it ends, apart from each other also where curves end together."""
    ax.get_ylim()  # which settles the limits
    to_axes = ax.transData + ax.transAxes.inverted()
    placed = [(*to_axes.transform(end), series, end[1]) for end, series in ends]
    below = -1.0
    for right, place, series, value in sorted(placed, key=lambda each: float(each[1])):
        below = max(place, below + 0.08)
        ax.text(
            right + 0.015,
            below,
            f"{series.contender}  {words.number(value)}",
            transform=ax.transAxes,
            va="center",
            color=LIGHT[palette.role(series.role)],
        )


def stack(ax: Any, row: int, panel: Panel, names: Sequence[str]) -> float:
    """The sum of the medians. A metric has its place in `names`, and so its tint."""
    parts = [(series.metric, statistics.median(series.samples)) for series in panel.series]
    total = sum(max(value, 0.0) for _, value in parts)
    left = 0.0
    for metric, value in parts:
        width, name = max(value, 0.0), metric.removeprefix("part:")
        tint = _TINTS[names.index(metric) % len(_TINTS)]
        ax.barh(row, width, left=left, height=0.6, color=tint, zorder=2)
        if width > total * _ROOM * (len(name) + 1):
            told = f"{name}\n{words.number(value)}"
            ax.text(left + width / 2, row, told, ha="center", va="center", size=8, zorder=3)
        left += width
    ax.text(left, row, f" {words.number(total)}", va="center", size=9.5, weight="bold")
    return total
