"""A call taken apart: the parts are named after the steps, and together they are the whole."""

import pytest

from bench.suites.breakdown import split


def test_the_parts_are_the_whole():
    line = {"ms": 2.0, "steps": {"Veth.do": 0.5, "Redirect.do": 0.25}}
    parts = split(line, whole=3.0, client=0.5)
    assert parts == pytest.approx(
        {"client": 0.5, "queue": 0.5, "engine": 1.25, "Veth": 0.5, "Redirect": 0.25}
    )
    assert sum(parts.values()) == pytest.approx(3.0)
