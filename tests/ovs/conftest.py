"""A node with an Open vSwitch of its own, and a connection of this process to its database."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from bench.testbed.node import Node
from cni.config.settings import Ovs
from cni.ovs import open_database
from cni.ovs.database import Database
from tests.ovs.ovskit import switched


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """With vmlinkd running."""
    with switched() as made:
        made.start()
        yield made


@pytest.fixture
def fragile() -> Iterator[Node]:
    """For one test, which ends the servers and starts them anew."""
    with switched() as made:
        yield made


@pytest.fixture
def database(node: Node) -> Iterator[Database]:
    assert node.switch
    with node.namespace.entered():
        connected = open_database(Ovs(node.switch.db), "test")
        connected.look(10)
        yield connected
        connected.close()
    # An internal port's link goes when ovs-vswitchd comes to it; this waits for that.
    node.switch.vsctl("set", "Open_vSwitch", ".", f"external_ids:test={uuid.uuid4()}")
