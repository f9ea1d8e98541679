"""A node with its own Open vSwitch, and a connection from this process to its database."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from bench.testbed.node import Node
from bench.testbed.switch import Datapath
from cni.config.settings import Ovs
from cni.ovs import open_database
from cni.ovs.database import Database
from tests.ovs.ovskit import switched


@pytest.fixture(scope="module")
def node(datapath: Datapath) -> Iterator[Node]:
    """A node with its own Open vSwitch, on which vmlinkd runs."""
    with switched(datapath) as made:
        made.start()
        yield made


@pytest.fixture
def fragile(datapath: Datapath) -> Iterator[Node]:
    """A node for a single test, which may kill and restart the servers."""
    with switched(datapath) as made:
        yield made


@pytest.fixture
def database(node: Node) -> Iterator[Database]:
    assert node.switch
    with node.namespace.entered():
        connected = open_database(Ovs(node.switch.db), "test")
        connected.look(10)
        yield connected
        connected.close()
    # ovs-vswitchd deletes the links of internal ports in its own time: wait until it has.
    node.switch.vsctl("set", "Open_vSwitch", ".", f"external_ids:test={uuid.uuid4()}")
