"""A node with its own Open vSwitch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.testbed import switch
from bench.testbed.node import Node
from bench.testbed.switch import Datapath, Switch

BRIDGE = "br0"


@contextmanager
def switched(datapath: Datapath | None = None) -> Iterator[Node]:
    """A node with an OVS bridge whose local port is up."""
    if reason := switch.missing():
        pytest.skip(reason)
    with Node("ovs", datapath) as made:
        assert made.switch
        made.switch.add_bridge(BRIDGE)
        made.run(["ip", "link", "set", BRIDGE, "up"])
        yield made


def switch_of(node: Node) -> Switch:
    """The node's Open vSwitch, which it must have."""
    assert node.switch, "the node has no Open vSwitch"
    return node.switch
