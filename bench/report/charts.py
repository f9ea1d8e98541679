"""Which charts a document gives, and the sentence that says what each shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from bench.report import stats, tables, words
from bench.report.document import Document
from bench.report.results import Series

_BARS_BELOW = 8  # samples; a cloud of fewer shows nothing


@dataclass(frozen=True)
class Panel:
    """One set of axes: series under the same conditions, or of one contender."""

    title: str
    series: list[Series]

    @property
    def ranked(self) -> list[Series]:
        """The best first."""
        return sorted(self.series, key=_goodness)


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
        return self.panels[0].series[0].suite

    @property
    def series(self) -> list[Series]:
        return [series for panel in self.panels for series in panel.series]


def charts(document: Document) -> list[Chart]:
    found = [series for series in document.series if series.samples]
    parts = [series for series in found if words.is_part(series.metric)]
    made = [
        chart
        for group in _groups(
            (series for series in found if series not in parts),
            lambda s: (s.suite, s.metric, s.unit),
        )
        for chart in _of_metric(group)
    ]
    made += [_of_parts(group) for group in _groups(parts, lambda s: (s.suite, s.unit))]
    suites, known = [series.suite for series in found], list(words.METRICS.values())

    def place(chart: Chart) -> tuple[int, int]:
        """What has no words of its own comes last in its suite."""
        told = known.index(chart.metric) if chart.metric in known else len(known)
        return suites.index(chart.suite), told

    return sorted(made, key=place)


def _groups(found: Iterable[Series], key: Callable[[Series], Hashable]) -> list[list[Series]]:
    groups: dict[Hashable, list[Series]] = {}
    for series in found:
        groups.setdefault(key(series), []).append(series)
    return list(groups.values())


def _of_metric(found: list[Series]) -> list[Chart]:
    """What was measured with several numbers of attachments there is a curve; the rest is not,
    and has the conditions first that most contenders share.
    """
    curves = [s for s in found if "present" in s.at and len(_curve(s, found)) > 1]
    rest = [s for s in found if s not in curves]
    made = []
    if rest:
        panels = [
            Panel(words.conditions(group[0]), group)
            for group in _groups(rest, lambda s: str(dict(s.at)))
        ]
        panels.sort(key=lambda panel: -len(panel.series))
        few = max(len(s.samples) for s in rest) < _BARS_BELOW
        kind = "bars" if few or stats.higher_is_better(rest[0].unit) else "samples"
        made.append(_chart(kind, "", rest[0], _comparison(panels), panels))
    if curves:
        panels = [
            Panel(words.conditions(group[0], "present"), group)
            for group in _groups(curves, lambda s: str(_without_present(s)))
        ]
        made.append(_chart("growth", "-growth", curves[0], _growth(curves), panels))
    return made


def _chart(kind: str, suffix: str, first: Series, told: str, panels: list[Panel]) -> Chart:
    name = re.sub(r"[^a-z0-9]+", "-", f"{first.suite}-{first.metric}".lower()) + suffix
    metric = words.metric(first.metric)
    title = f"{metric}: {told}" if told else metric
    return Chart(kind, name, metric, first.unit, title, panels)


def _goodness(series: Series) -> float:
    """Of a median; the best first."""
    found = stats.summary(series)
    assert found
    return -found.p50 if stats.higher_is_better(series.unit) else found.p50


def _without_present(series: Series) -> dict[str, int | str]:
    return {key: value for key, value in series.at.items() if key != "present"}


def _curve(series: Series, among: Iterable[Series]) -> list[Series]:
    """The points of its curve, from few to many."""
    rest = _without_present(series)
    found = [
        other
        for other in among
        if other.contender == series.contender
        and "present" in other.at
        and _without_present(other) == rest
    ]
    return sorted(found, key=lambda s: int(s.at["present"]))


def _comparison(panels: Sequence[Panel]) -> str:
    """The best of vmlink beside its baseline, in the first panel that has both."""
    for panel in panels:
        for best in panel.ranked:
            base = stats.baseline(best, panel.series)
            times = stats.ratio(best, base)
            if best.role != "vmlink" or base is None or times is None:
                continue
            ours, theirs = f"{best.contender} {_median(best)}", f"{base.contender} {_median(base)}"
            where = f", {panel.title}" if len(panels) > 1 else ""
            return f"{ours}, {theirs} (ratio {words.ratio(times)}){where}"
    return ""


def _median(series: Series) -> str:
    found = stats.summary(series)
    assert found
    return f"{words.number(found.p50)} {series.unit}"


def _growth(curves: Sequence[Series]) -> str:
    """By how much each has grown from its first point to the last."""
    told: dict[str, list[str]] = {}
    for group in _groups(curves, lambda s: (s.contender, str(_without_present(s)))):
        first, *_, last = _curve(group[0], group)
        way = f"from {first.at['present']} to {last.at['present']} attachments"
        grown = f"{first.contender} {words.ratio(stats.ratio(last, first))} times"
        told.setdefault(way, []).append(grown)
    return "; ".join(f"{way} {', '.join(grown)}" for way, grown in told.items())


def _of_parts(found: list[Series]) -> Chart:
    """A bar for each contender and verb, made of the parts of its calls."""
    panels = [
        Panel(", ".join(filter(None, (group[0].contender, words.conditions(group[0])))), group)
        for group in _groups(found, lambda s: (s.contender, str(dict(s.at))))
    ]
    largest = max(found, key=lambda s: abs(_goodness(s)))
    part = f"{tables.row_name(largest)}, {words.conditions(largest)}, {_median(largest)}"
    title = f"{words.PARTS}: the largest part is {part}"
    name = f"{found[0].suite}-parts"
    return Chart("parts", name, words.PARTS, found[0].unit, title, panels)


def standing(chart: Chart) -> str:
    """How many medians of vmlink are better than their baseline's, and whose are not; empty
    without a baseline.
    """
    behind: dict[str, list[float]] = {}
    count = 0
    for panel in chart.panels if chart.kind in ("samples", "bars") else ():
        for series in panel.series:
            times = stats.ratio(series, stats.baseline(series, panel.series))
            if series.role == "vmlink" and times is not None:
                count += 1
                if (times > 1) != stats.higher_is_better(series.unit):
                    behind.setdefault(series.contender, []).append(times)
    ahead = count - sum(map(len, behind.values()))
    told = f"{ahead} of {count} medians of vmlink are better than their baseline's"
    most = [f"{name} ({_range(times)})" for name, times in behind.items()]
    return f"{told}{'; not: ' if most else ''}{', '.join(most)}." if count else ""


def _range(ratios: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(map(words.ratio, (min(ratios), max(ratios)))))
