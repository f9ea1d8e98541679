"""Fixtures of the fault table, for each module that has the fixtures `way` and `zygote`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.attach_ways import Way
from tests.netns.faultlab import FaultyNode, Lab, Zygote, opened, prepared


@pytest.fixture(scope="module")
def tally(told: list[str]) -> Iterator[list[Lab]]:
    """The labs of this module; in the end what came of all faults is told in one line."""
    labs: list[Lab] = []
    yield labs
    steps = sum(len(way.steps) for way in {lab.way.name: lab.way for lab in labs}.values())
    checks, leaks = sum(lab.noted for lab in labs), sum(len(lab.leaks) for lab in labs)
    ways = len({lab.way.name for lab in labs})
    told.append(f"faults: {checks} looks after {steps} steps of {ways} ways, {leaks} leaks")


@pytest.fixture(scope="module")
def prepared_node(zygote: Zygote, way: Way) -> Iterator[FaultyNode]:
    """Making one takes longer than most tests on it."""
    with prepared(zygote, way) as node:
        yield node


@pytest.fixture
def lab(prepared_node: FaultyNode, way: Way, tally: list[Lab]) -> Iterator[Lab]:
    with opened(prepared_node, way) as made:
        tally.append(made)
        yield made
