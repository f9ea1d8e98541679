"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def columns(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines in which the cells of each column stand below each other, one line a row."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
