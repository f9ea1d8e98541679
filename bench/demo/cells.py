"""Cells that both tables of the demo have."""

from __future__ import annotations


def value(content: object) -> str:
    """A value as text; "-" for none."""
    return "-" if content is None or content == "" else str(content)


def verdict(ok: bool, skipped: str) -> str:
    """The last cell of a row: ok, FAILED, or why it was skipped."""
    return f"skipped: {skipped}" if skipped else "ok" if ok else "FAILED"
