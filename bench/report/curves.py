"""Curves over how much is there already, and bars made of parts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.report import palette, stats, words
from bench.report.charts import Chart, Panel
from bench.report.palette import LIGHT
from bench.report.results import Series

LOG_FROM = 12  # times that the largest is the smallest
_TINTS = [LIGHT[name] for name in LIGHT if name.startswith("part")]
_LETTER, _LINE = 0.014, 0.022  # what they take of the longest bar


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
    if low > 0 and high / low > LOG_FROM:
        ax.set_yscale("log")
        logarithmic(ax.yaxis, high / low)
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


def logarithmic(axis: Any, times: float) -> None:
    """Ticks where the largest is so many times the smallest."""
    axis.set_major_locator(LogLocator(subs=(1.0,) if times > 300 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def stacks(ax: Any, chart: Chart) -> float:
    """A row for each panel, made of its series' medians; returns the longest."""
    names = list(dict.fromkeys(s.metric for s in chart.series if _median(s)))
    widest = max(sum(map(_median, panel.series)) for panel in chart.panels)
    for row, panel in enumerate(chart.panels):
        left = 0.0
        for series in panel.series:
            if width := _median(series):
                tint = _TINTS[names.index(series.metric) % len(_TINTS)]
                ax.barh(row, width, left=left, height=0.86, color=tint, zorder=2)
                _name_part(ax, left + width / 2, row, series, width / (widest or 1))
            left += width
        ax.text(left, row, f" {words.number(left)}", va="center", size=9.5, weight="bold")
    return widest


def _median(series: Series) -> float:
    """A part that is the difference of two others can be less than nothing."""
    return max(statistics.median(series.samples), 0.0)


def _name_part(ax: Any, middle: float, row: int, series: Series, share: float) -> None:
    """Across where that fits, else upright."""
    name, value = series.metric.removeprefix("part:"), words.number(_median(series))
    text = {"ha": "center", "va": "center", "size": 8, "zorder": 3}
    if share > _LETTER * (max(len(name), len(value)) + 1):
        ax.text(middle, row, f"{name}\n{value}", **text)
    elif share > _LINE:
        short = f"{name} {_median(series):.2g}"
        ax.text(middle, row, short, rotation="vertical", **text | {"size": 7})
