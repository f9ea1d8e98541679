"""A series in a few numbers, as far as there are samples enough, and which of two is better."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.results import Series

HIGHER_IS_BETTER = frozenset({"Gbit/s", "Mbit/s", "kpps", "1/s"})
# Samples that a quantile needs, so that one sample is expected beyond it.
FOR_P90, FOR_P99, FOR_P999 = 10, 100, 1000
FOR_SPREAD = 4  # samples that a spread needs


@dataclass(frozen=True)
class Summary:
    """Quantiles of a series in its unit, None where there are too few samples.

    p90 means that 90 percent of the samples were that good or better. The middle half of them lies
    between `low` and `high`.
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
    """Whether more is better in this unit; in all others less is."""
    return unit in HIGHER_IS_BETTER


def summary(series: Series) -> Summary | None:
    """The summary of a series; None without samples."""
    ordered = sorted(series.samples, reverse=higher_is_better(series.unit))
    if not ordered:
        return None
    low, high = sorted((quantile(ordered, 0.25), quantile(ordered, 0.75)))
    return Summary(
        n=len(ordered),
        p50=statistics.median(ordered),
        p90=quantile(ordered, 0.9) if len(ordered) >= FOR_P90 else None,
        p99=quantile(ordered, 0.99) if len(ordered) >= FOR_P99 else None,
        p999=quantile(ordered, 0.999) if len(ordered) >= FOR_P999 else None,
        worst=ordered[-1],
        low=low,
        high=high,
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The quantile `share` of ordered samples, interpolated between the nearest two."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def same_conditions(a: Series, b: Series) -> bool:
    """Whether two series can be compared: same suite, metric and conditions."""
    return (a.suite, a.metric, a.at) == (b.suite, b.metric, b.at)


def baseline(series: Series, among: Sequence[Series]) -> Series | None:
    """The baseline under the same conditions; None when there is none.

    Of several it is the one whose name shares most words, as `tap-ovs` and `ovs-vsctl` share one;
    of equal ones the first.
    """
    baselines = [
        other
        for other in among
        if other.role == "baseline" and other.samples and same_conditions(series, other)
    ]
    if series in baselines:
        return series
    words = set(series.contender.split("-"))
    return max(baselines, key=lambda s: len(words & set(s.contender.split("-"))), default=None)


def ratio(series: Series, to: Series | None) -> float | None:
    """The ratio of two series' medians; None without samples or when the divisor is zero."""
    if to is None or not series.samples or not to.samples:
        return None
    by = statistics.median(to.samples)
    return statistics.median(series.samples) / by if by else None


def better(a: Summary, b: Summary, unit: str) -> bool | None:
    """Whether b is better than a; None within the spread, where the middle halves overlap."""
    if min(a.n, b.n) < FOR_SPREAD or (a.low <= b.high and b.low <= a.high):
        return None
    return (b.p50 > a.p50) == higher_is_better(unit)
