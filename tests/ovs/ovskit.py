"""A node with an Open vSwitch of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.testbed import switch
from bench.testbed.node import Node

BRIDGE = "br0"


@contextmanager
def switched() -> Iterator[Node]:
    """A node whose OVS bridge has its local port up."""
    if reason := switch.missing():
        pytest.skip(reason)
    with Node("ovs") as made:
        assert made.switch
        made.switch.add_bridge(BRIDGE)
        made.run(["ip", "link", "set", BRIDGE, "up"])
        yield made
