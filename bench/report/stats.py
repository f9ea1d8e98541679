"""A series in few numbers, and which of two is better. No more is said than the samples bear."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.report.results import Series

HIGHER_IS_BETTER = frozenset({"Gbit/s", "Mbit/s", "kpps", "1/s"})
# A quantile is told when at least one sample is expected beyond it.
FOR_P90, FOR_P99, FOR_P999 = 10, 100, 1000
FOR_SPREAD = 4


@dataclass(frozen=True)
class Summary:
    """In the unit of the series. So many percent of the samples were that good or better; None
    with too few of them to say. Half of them lie from `low` to `high`.
    """

    n: int
    p50: float
    p90: float | None
    p99: float | None
    p999: float | None
    worst: float
    low: float
    high: float


def higher_is_better(unit: str) -> bool:
    return unit in HIGHER_IS_BETTER


def summary(series: Series) -> Summary | None:
    """None without samples."""
    found = sorted(series.samples, reverse=higher_is_better(series.unit))
    if not found:
        return None
    low, high = sorted((quantile(found, 0.25), quantile(found, 0.75)))
    return Summary(
        n=len(found),
        p50=statistics.median(found),
        p90=quantile(found, 0.9) if len(found) >= FOR_P90 else None,
        p99=quantile(found, 0.99) if len(found) >= FOR_P99 else None,
        p999=quantile(found, 0.999) if len(found) >= FOR_P999 else None,
        worst=found[-1],
        low=low,
        high=high,
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two nearest of samples that are in order."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def same_conditions(a: Series, b: Series) -> bool:
    return (a.suite, a.metric, a.at) == (b.suite, b.metric, b.at)


def baseline(series: Series, among: Sequence[Series]) -> Series | None:
    """What this one is measured against: the baseline under the same conditions.

    Of several, the one that has most words of its name in common, as `tap-ovs` has one with
    `ovs-vsctl`; the first if that does not tell.
    """
    found = [
        other
        for other in among
        if other.role == "baseline" and other.samples and same_conditions(series, other)
    ]
    if series in found:
        return series
    words = set(series.contender.split("-"))
    return max(found, key=lambda s: len(words & set(s.contender.split("-"))), default=None)


def ratio(series: Series, to: Series | None) -> float | None:
    """Of medians; None where there is nothing to divide by."""
    if to is None or not series.samples or not to.samples:
        return None
    by = statistics.median(to.samples)
    return statistics.median(series.samples) / by if by else None


def better(a: Summary, b: Summary, unit: str) -> bool | None:
    """Is b better than a? None when that is within the spread: the middle halves overlap."""
    if min(a.n, b.n) < FOR_SPREAD or (a.low <= b.high and b.low <= a.high):
        return None
    return (b.p50 > a.p50) == higher_is_better(unit)
