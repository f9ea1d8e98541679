"""Numbers, ratios and durations as text."""

from __future__ import annotations


def number(value: float | None) -> str:
    """A number with three significant digits; "-" for None."""
    if value is None:
        return "-"
    size = abs(value)
    digits = 0 if size >= 100 or value == 0 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{digits}f}"


def ratio(value: float | None) -> str:
    """A ratio to hundredths, below 0.1 to thousandths; "-" for None."""
    if value is None or value == 0:
        return "-" if value is None else "0"
    size = abs(value)
    return f"{value:.{3 if size < 0.1 else 2 if size < 10 else 1}f}"


def duration(seconds: float) -> str:
    """Seconds as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
