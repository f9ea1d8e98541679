"""A node for container runtimes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.testbed.node import Node
from tests.clients.clientkit import Machine


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as made:
        yield made


@pytest.fixture(scope="module")
def machine(node: Node) -> Iterator[Machine]:
    made = Machine(node)
    yield made
    made.close()
