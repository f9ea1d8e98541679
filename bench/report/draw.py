"""Charts as pictures: PNG files, and SVG that takes colours and fonts from the page."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bench.report import curves, formats, labels, palette, stats
from bench.report.charts import Chart, Panel
from bench.report.palette import LIGHT
from bench.results import Series

_WIDTH, _ROW, _AROUND = 7.6, 0.25, 0.75  # inches
_DOTS = 150  # samples that a cloud shows at most
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.edgecolor": LIGHT["line"],
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "grid.color": LIGHT["line"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["ink"],
    "xtick.labelsize": 8.5,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def draw(chart: Chart, png: Path) -> str:
    """Write a PNG with the chart's title, and return an SVG without it. Raises OSError."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": chart.name}):
        figure = _figure(chart)
        text = io.StringIO()
        no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(text, format="svg", metadata=no_metadata)
        wide = int(figure.get_figwidth() * 12.5)
        figure.suptitle(
            "\n".join(textwrap.wrap(chart.title, wide, break_on_hyphens=False)),
            x=0.01,
            ha="left",
            size=11,
        )
        figure.savefig(png, format="png", dpi=150, facecolor=LIGHT["paper"])
    return _embeddable(text.getvalue(), chart)


def _embeddable(svg: str, chart: Chart) -> str:
    """Give an SVG ids of its own, the page's colours, and no fixed size.

    Screen readers read the figure's title instead of it.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{chart.name}-", svg)
    svg = re.sub(r'(<svg [^>]*?) ?width="[^"]*pt"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) ?height="[^"]*pt"', r"\1", svg, count=1)
    return palette.adaptable(svg.replace("<svg ", '<svg aria-hidden="true" ', 1))


def _figure(chart: Chart) -> Figure:
    if chart.kind == "growth":
        return curves.growth(chart)
    if chart.kind == "parts":
        return _parts(chart)
    return _panels(chart)


def _panels(chart: Chart) -> Figure:
    """A figure of panels, in two columns if they have most of their contenders in common."""
    names = {s.contender for s in chart.series}
    alike = all(2 * len(panel.series) > len(names) for panel in chart.panels)
    columns = 2 if alike and len(chart.panels) > 1 else 1
    rows = [chart.panels[n : n + columns] for n in range(0, len(chart.panels), columns)]
    heights = [max(len(panel.series) for panel in row) + 0.3 for row in rows]
    figure = Figure(
        (_WIDTH * (1.35 if columns == 2 else 1), sum(heights) * _ROW + len(rows) * _AROUND + 0.3)
    )
    figure.set_layout_engine("constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for line, row in zip(axes, rows, strict=True):
        for ax in line[len(row) :]:
            ax.set_axis_off()
        for ax, panel in zip(line, row, strict=False):
            _panel(ax, panel, chart)
    _add_legend(figure, chart.series)
    return figure


def _add_legend(figure: Figure, series: Sequence[Series]) -> None:
    """Add a legend of the roles in the figure."""
    used = {each.role for each in series}
    roles = {palette.role(name): label for name, label in labels.ROLES.items() if name in used}
    handles = [Patch(color=LIGHT[colour], label=label) for colour, label in roles.items()]
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=len(handles),
        frameon=False,
        fontsize=8.5,
        handlelength=0.9,
        handleheight=0.9,
    )


def _colour(series: Series) -> str:
    return LIGHT[palette.role(series.role)]


def _panel(ax: Any, panel: Panel, chart: Chart) -> None:
    """A row for each contender, the best on top."""
    for row, series in enumerate(panel.ranked):
        (_bar if chart.kind == "bars" else _cloud)(ax, row, series)
        _write_median(ax, row, series, panel)
    bases = {b.contender: b for s in panel.series if (b := stats.baseline(s, panel.series))}
    for base in bases.values():
        median = _summary(base).p50
        ax.axvline(median, color=LIGHT["baseline"], lw=0.9, ls=(0, (4, 3)), zorder=1)
    ax.set_yticks(range(len(panel.series)), [_short(s.contender) for s in panel.ranked])
    for label, series in zip(ax.get_yticklabels(), panel.ranked, strict=True):
        label.set_color(_colour(series))
    ax.set_ylim(len(panel.series) - 0.4, -0.6)
    ax.set_title(panel.title or " ")
    head = "p50 (ratio)" if bases else "p50"
    ax.text(1.03, 1.01, head, transform=ax.transAxes, color=LIGHT["muted"], size=8.5, va="bottom")
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(f"{chart.unit}{'; more is better' * stats.higher_is_better(chart.unit)}")
    _set_scale(ax, chart, panel)


def _summary(series: Series) -> stats.Summary:
    """The summary of a series that has samples."""
    summary = stats.summary(series)
    assert summary
    return summary


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def _write_median(ax: Any, row: int, series: Series, panel: Panel) -> None:
    """Write the median, and its ratio to the baseline, right of a row."""
    base = stats.baseline(series, panel.series)
    ratio = stats.ratio(series, base)
    text = formats.number(_summary(series).p50)
    text += f" ({formats.ratio(ratio)})" if ratio is not None and base is not series else ""
    ax.text(1.03, row, text, transform=ax.get_yaxis_transform(), va="center_baseline", size=9)


def _cloud(ax: Any, row: int, series: Series) -> None:
    """Draw dots for samples, a thick bar for the middle half, a stroke for the median, p99."""
    summary = _summary(series)
    ordered = sorted(series.samples)
    count = min(len(ordered), _DOTS)
    shares = [n / max(count - 1, 1) for n in range(count)]
    dots = [stats.quantile(ordered, share) for share in shares]
    # Multiples of the golden ratio spread the dots without a pattern, the same each time.
    spread = [row + (n * 0.618034 % 1 - 0.5) * 0.55 for n in range(count)]
    tint = _colour(series)
    ax.scatter(dots, spread, s=6, color=tint, alpha=0.35, linewidths=0, zorder=2)
    ax.plot([summary.low, summary.high], [row, row], color=tint, lw=6, alpha=0.45, zorder=3,
            solid_capstyle="butt")  # fmt: skip
    ax.plot([summary.p50] * 2, [row - 0.33, row + 0.33], color=tint, lw=2.2, zorder=4)
    if summary.p99 is not None:
        ax.plot([summary.p99] * 2, [row - 0.2, row + 0.2], color=tint, lw=1.1, zorder=4)


def _bar(ax: Any, row: int, series: Series) -> None:
    """Draw the median from zero, and a line from the smallest sample to the largest."""
    ax.barh(row, _summary(series).p50, height=0.62, color=_colour(series), alpha=0.6, zorder=2)
    ends = [min(series.samples), max(series.samples)]
    ax.plot(ends, [row, row], color=LIGHT["ink"], lw=1.1, zorder=3)
    ax.scatter(series.samples[:_DOTS], [row] * min(len(series.samples), _DOTS), s=7,
               color=LIGHT["ink"], linewidths=0, zorder=4)  # fmt: skip


def _set_scale(ax: Any, chart: Chart, panel: Panel) -> None:
    """Start the axis at zero, or make it logarithmic for clouds that lie far apart."""
    samples = [sample for series in panel.series for sample in series.samples]
    if chart.kind == "bars":
        _cut_limits(ax, panel)
    if chart.kind == "bars" or min(samples) <= 0 or max(samples) / min(samples) < curves.LOG_FROM:
        ax.set_xlim(left=min(0, *samples), right=None if any(samples) else 1)
        return
    ax.set_xscale("log")
    ax.set_xlabel(f"{ax.get_xlabel()} (logarithmic)")
    curves.set_log_ticks(ax.xaxis, max(samples) / min(samples))


def _cut_limits(ax: Any, panel: Panel) -> None:
    """Let the bars of limits far beyond all others leave the axes, to have room for the others."""
    inner = [max(s.samples) for s in panel.series if palette.role(s.role) != "limit"]
    edge = 1.3 * max(inner, default=0)
    if edge <= 0:
        return
    for row, series in enumerate(panel.ranked):
        if min(series.samples) > edge:
            ax.set_xlim(right=edge)
            ax.plot(edge, row, ">", color=_colour(series), ms=7, clip_on=False, zorder=5)


def _parts(chart: Chart) -> Figure:
    """A figure of stacked bars, which are the medians of the parts of calls."""
    count = len(chart.panels)
    figure = Figure((_WIDTH, count * 0.95 + 0.7))
    figure.set_layout_engine("constrained")
    ax: Any = figure.subplots()
    longest = curves.stacks(ax, chart)
    ax.set_yticks(range(count), [panel.title for panel in chart.panels])
    ax.set_ylim(count - 0.45, -0.55)
    ax.set_xlim(0, longest * 1.12 or 1)
    ax.set_xlabel(f"{chart.unit}, medians of the parts")
    ax.spines["left"].set_visible(False)
    return figure
