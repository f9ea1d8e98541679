"""Fixtures for everything that runs on a node, and the check that nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import snapshot
from bench.node import Node, give_back_on_sigterm


def pytest_configure() -> None:
    snapshot.adopt_orphans()
    give_back_on_sigterm()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if os.geteuid() != 0 and "unit" not in Path(item.path).parts:
            item.add_marker(pytest.mark.skip(reason="needs root: namespaces and links"))


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Links, namespaces, qdiscs, mounts, processes and files are as they were before the test.

    Its own fixtures are given back by then; a node of the module counts with all it contains.
    """
    node = request.getfixturevalue("node") if "node" in request.fixturenames else None
    before, inside = snapshot.take(), node.contents() if node else frozenset()
    yield
    left = snapshot.left_behind(before)
    left += sorted(node.contents() - inside) if node and node.daemon else []
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A node with vmlinkd running, shared by the module's tests."""
    with Node() as made:
        made.start()
        made.run(["ip", "link", "add", "br0", "address", "02:00:00:00:00:b0", "type", "bridge"])
        yield made


@pytest.fixture
def pod(node: Node) -> Iterator[Path]:
    """The namespace of a pod, by its path."""
    path = node.pod()
    yield path
    node.lab.drop(path)
