"""The time of a call by its parts: client, queue, engine and steps add up to the whole call."""

from __future__ import annotations

import pytest

from bench.suites.breakdown import split


def test_the_parts_are_the_whole() -> None:
    line = {"ms": 2.0, "steps": {"Veth.do": 0.5, "Redirect.do": 0.25}}
    parts = split(line, whole=3.0, client=0.5)
    assert parts == pytest.approx(
        {"client": 0.5, "queue": 0.5, "engine": 1.25, "Veth": 0.5, "Redirect": 0.25}
    )
    assert sum(parts.values()) == pytest.approx(3.0)
