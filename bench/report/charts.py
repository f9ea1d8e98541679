"""Which charts a document gives, and the sentence that says what each shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from bench.report import formats, labels, stats, tables
from bench.report.document import Document
from bench.results import Series

_BARS_BELOW = 8  # samples; fewer are drawn as a bar, more as a cloud


@dataclass(frozen=True)
class Panel:
    """One set of axes: series under the same conditions, or of one contender."""

    title: str
    series: list[Series]

    @property
    def ranked(self) -> list[Series]:
        """The series, the best first."""
        return sorted(self.series, key=_rank)


@dataclass(frozen=True)
class Chart:
    """`kind` is samples, bars, growth or parts; `name` names its file; `title` is a sentence."""

    kind: str
    name: str
    metric: str
    unit: str
    title: str
    panels: list[Panel]

    @property
    def suite(self) -> str:
        """The suite of its series."""
        return self.panels[0].series[0].suite

    @property
    def series(self) -> list[Series]:
        """The series of all panels."""
        return [series for panel in self.panels for series in panel.series]


def charts(document: Document) -> list[Chart]:
    """All charts of a document, in the order of the suites and of `labels.METRICS`."""
    measured = [series for series in document.series if series.samples]
    parts = [series for series in measured if labels.is_part(series.metric)]
    others = [series for series in measured if series not in parts]
    made = [
        chart
        for group in _groups(others, lambda s: (s.suite, s.metric, s.unit))
        for chart in _charts_of_metric(group)
    ]
    made += [_chart_of_parts(group) for group in _groups(parts, lambda s: (s.suite, s.unit))]
    suites, known = [series.suite for series in measured], list(labels.METRICS.values())

    def place(chart: Chart) -> tuple[int, int]:
        metric = known.index(chart.metric) if chart.metric in known else len(known)
        return suites.index(chart.suite), metric

    return sorted(made, key=place)


def _groups(series: Iterable[Series], key: Callable[[Series], Hashable]) -> list[list[Series]]:
    groups: dict[Hashable, list[Series]] = {}
    for each in series:
        groups.setdefault(key(each), []).append(each)
    return list(groups.values())


def _charts_of_metric(group: list[Series]) -> list[Chart]:
    """Curves for what was measured with several numbers of attachments present, and the rest."""
    curves = [s for s in group if "present" in s.at and len(_curve(s, group)) > 1]
    rest = [s for s in group if s not in curves]
    return ([_comparison_chart(rest)] if rest else []) + ([_growth_chart(curves)] if curves else [])


def _comparison_chart(group: list[Series]) -> Chart:
    """A panel for each set of conditions, the one with most contenders first."""
    panels = [
        Panel(labels.conditions(series[0]), series)
        for series in _groups(group, lambda s: str(dict(s.at)))
    ]
    panels.sort(key=lambda panel: -len(panel.series))
    few = max(len(s.samples) for s in group) < _BARS_BELOW
    kind = "bars" if few or stats.higher_is_better(group[0].unit) else "samples"
    return _chart(kind, "", group[0], _comparison(panels), panels)


def _growth_chart(curves: list[Series]) -> Chart:
    panels = [
        Panel(labels.conditions(series[0], "present"), series)
        for series in _groups(curves, lambda s: str(_without_present(s)))
    ]
    return _chart("growth", "-growth", curves[0], _growth(curves), panels)


def _chart(kind: str, suffix: str, first: Series, finding: str, panels: list[Panel]) -> Chart:
    name = re.sub(r"[^a-z0-9]+", "-", f"{first.suite}-{first.metric}".lower()) + suffix
    metric = labels.metric(first.metric)
    title = f"{metric}: {finding}" if finding else metric
    return Chart(kind, name, metric, first.unit, title, panels)


def _rank(series: Series) -> float:
    """A key that sorts series by their medians, the best first."""
    summary = stats.summary(series)
    assert summary
    return -summary.p50 if stats.higher_is_better(series.unit) else summary.p50


def _without_present(series: Series) -> dict[str, int | str]:
    return {key: value for key, value in series.at.items() if key != "present"}


def _curve(series: Series, among: Iterable[Series]) -> list[Series]:
    """The points of a series' curve, from few attachments present to many."""
    conditions = _without_present(series)
    points = [
        other
        for other in among
        if other.contender == series.contender
        and "present" in other.at
        and _without_present(other) == conditions
    ]
    return sorted(points, key=lambda s: int(s.at["present"]))


def _comparison(panels: Sequence[Panel]) -> str:
    """The best of vmlink beside its baseline, in the first panel that has both."""
    for panel in panels:
        for best in panel.ranked:
            base = stats.baseline(best, panel.series)
            ratio = stats.ratio(best, base)
            if best.role != "vmlink" or base is None or ratio is None:
                continue
            ours, theirs = f"{best.contender} {_median(best)}", f"{base.contender} {_median(base)}"
            where = f", {panel.title}" if len(panels) > 1 else ""
            return f"{ours}, {theirs} (ratio {formats.ratio(ratio)}){where}"
    return ""


def _median(series: Series) -> str:
    summary = stats.summary(series)
    assert summary
    return f"{formats.number(summary.p50)} {series.unit}"


def _growth(curves: Sequence[Series]) -> str:
    """By how much each curve grows from its first point to its last."""
    growth: dict[str, list[str]] = {}
    for group in _groups(curves, lambda s: (s.contender, str(_without_present(s)))):
        first, *_, last = _curve(group[0], group)
        span = f"from {first.at['present']} to {last.at['present']} attachments"
        times = f"{first.contender} {formats.ratio(stats.ratio(last, first))} times"
        growth.setdefault(span, []).append(times)
    return "; ".join(f"{span} {', '.join(times)}" for span, times in growth.items())


def _chart_of_parts(parts: list[Series]) -> Chart:
    """A bar for each contender and verb, made of the parts of its calls."""
    panels = [
        Panel(", ".join(filter(None, (group[0].contender, labels.conditions(group[0])))), group)
        for group in _groups(parts, lambda s: (s.contender, str(dict(s.at))))
    ]
    largest = max(parts, key=lambda s: abs(_rank(s)))
    part = f"{tables.row_name(largest)}, {labels.conditions(largest)}, {_median(largest)}"
    title = f"{labels.PARTS}: the largest part is {part}"
    name = f"{parts[0].suite}-parts"
    return Chart("parts", name, labels.PARTS, parts[0].unit, title, panels)


def summary_of_ratios(chart: Chart) -> str:
    """How many medians of vmlink are better than their baseline's, and which are not.

    Empty when the chart has no baseline.
    """
    worse: dict[str, list[float]] = {}
    count = 0
    for panel in chart.panels if chart.kind in ("samples", "bars") else ():
        for series in panel.series:
            ratio = stats.ratio(series, stats.baseline(series, panel.series))
            if series.role == "vmlink" and ratio is not None:
                count += 1
                if (ratio > 1) != stats.higher_is_better(series.unit):
                    worse.setdefault(series.contender, []).append(ratio)
    better = count - sum(map(len, worse.values()))
    sentence = f"{better} of {count} medians of vmlink are better than their baseline's"
    others = [f"{name} ({_range(ratios)})" for name, ratios in worse.items()]
    return f"{sentence}{'; not: ' if others else ''}{', '.join(others)}." if count else ""


def _range(ratios: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(map(formats.ratio, (min(ratios), max(ratios)))))
