"""Curves over the number of attachments present, and bars made of the parts of a call."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.report import formats, palette, stats
from bench.report.charts import Chart, Panel
from bench.report.palette import LIGHT
from bench.results import Series

LOG_FROM = 12  # ratio of the largest to the smallest value from which an axis is logarithmic
_TINTS = [LIGHT[name] for name in LIGHT if name.startswith("part")]
_LETTER, _LINE = 0.014, 0.022  # width of a letter, height of a line, as shares of the longest bar


def growth(chart: Chart) -> Figure:
    """A figure of curves, one panel beneath the other; each curve is named at its end."""
    figure = Figure((7.6, 3.4 * len(chart.panels)))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(len(chart.panels), squeeze=False)
    for (ax,), panel in zip(axes, chart.panels, strict=True):
        _draw_panel(ax, panel, chart.unit)
    return figure


def _draw_panel(ax: Any, panel: Panel, unit: str) -> None:
    names = dict.fromkeys(series.contender for series in panel.series)
    points = {name: _points(name, panel) for name in names}
    _set_limits(ax, [point for curve in points.values() for point in curve])
    ends = []
    for name, curve in points.items():
        series = next(s for s in panel.series if s.contender == name)
        ends.append((_draw_curve(ax, series, curve), series))
    _name_curves(ax, ends)
    ax.grid(axis="both")
    ax.tick_params(axis="y", colors=LIGHT["muted"], labelsize=8.5)
    ax.set_title(panel.title or " ")
    ax.set_xlabel("attachments present")
    ax.set_ylabel(f"{unit}, median and middle half")


def _set_limits(ax: Any, points: Sequence[tuple[int, stats.Summary]]) -> None:
    high = max(summary.high for _, summary in points)
    low = min(summary.low for _, summary in points)
    if low > 0 and high / low > LOG_FROM:
        ax.set_yscale("log")
        set_log_ticks(ax.yaxis, high / low)
    else:
        ax.set_ylim(0, high * 1.1 or 1)
    ax.set_xlim(0, max(present for present, _ in points) * 1.04)


def _points(name: str, panel: Panel) -> list[tuple[int, stats.Summary]]:
    """A contender's summaries by the number of attachments present, in order."""
    points = [
        (int(series.at["present"]), summary)
        for series in panel.series
        if series.contender == name and (summary := stats.summary(series))
    ]
    return sorted(points, key=lambda point: point[0])


def _draw_curve(
    ax: Any, series: Series, points: Sequence[tuple[int, stats.Summary]]
) -> tuple[int, float]:
    """Draw a curve and return its end."""
    tint = LIGHT[palette.role(series.role)]
    present = [x for x, _ in points]
    low, high = [s.low for _, s in points], [s.high for _, s in points]
    ax.fill_between(present, low, high, color=tint, alpha=0.18, lw=0)
    ax.plot(present, [s.p50 for _, s in points], color=tint, lw=2, marker="o", ms=4)
    x, last = points[-1]
    return x, last.p50


def _name_curves(ax: Any, ends: Sequence[tuple[tuple[int, float], Series]]) -> None:
    """Write each curve's name right of its end, without overlaps."""
    ax.get_ylim()  # makes matplotlib settle the limits
    to_axes = ax.transData + ax.transAxes.inverted()
    places = [(*to_axes.transform(end), series, end[1]) for end, series in ends]
    lowest = -1.0
    for x, y, series, value in sorted(places, key=lambda place: float(place[1])):
        lowest = max(y, lowest + 0.08)
        ax.text(
            x + 0.015,
            lowest,
            f"{series.contender}  {formats.number(value)}",
            transform=ax.transAxes,
            va="center",
            color=LIGHT[palette.role(series.role)],
        )


def set_log_ticks(axis: Any, span: float) -> None:
    """Set the ticks of a logarithmic axis; `span` is its largest value divided by its least."""
    axis.set_major_locator(LogLocator(subs=(1.0,) if span > 300 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def stacks(ax: Any, chart: Chart) -> float:
    """Draw a bar for each panel, made of its series' medians; returns the longest bar's length."""
    names = list(dict.fromkeys(s.metric for s in chart.series if _median(s)))
    longest = max(sum(map(_median, panel.series)) for panel in chart.panels)
    for row, panel in enumerate(chart.panels):
        left = 0.0
        for series in panel.series:
            if width := _median(series):
                tint = _TINTS[names.index(series.metric) % len(_TINTS)]
                ax.barh(row, width, left=left, height=0.86, color=tint, zorder=2)
                _name_part(ax, left + width / 2, row, series, width / (longest or 1))
            left += width
        ax.text(left, row, f" {formats.number(left)}", va="center", size=9.5, weight="bold")
    return longest


def _median(series: Series) -> float:
    """The median, at least zero: a part that is a difference of times can be negative."""
    return max(statistics.median(series.samples), 0.0)


def _name_part(ax: Any, middle: float, row: int, series: Series, share: float) -> None:
    """Write a part's name across its bar, upright, or not at all, as there is room."""
    name, value = series.metric.removeprefix("part:"), formats.number(_median(series))
    text = {"ha": "center", "va": "center", "size": 8, "zorder": 3}
    if share > _LETTER * (max(len(name), len(value)) + 1):
        ax.text(middle, row, f"{name}\n{value}", **text)
    elif share > _LINE:
        short = f"{name} {_median(series):.2g}"
        ax.text(middle, row, short, rotation="vertical", **text | {"size": 7})
