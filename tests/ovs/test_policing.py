"""bandwidth.egressRate on Open vSwitch: the ADD waits for the filter that polices the port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from bench.testbed import switch
from bench.testbed.node import Node
from cni.cancel import Cancel
from cni.errors import ClientGone
from cni.kernel import rtnl_encode, tc_encode
from cni.kernel.netlink import Netlink
from cni.modes.steps.ovs_port import becomes_policed
from tests.netns.nslib import ifindex, namespaces
from tests.ovs.ovskit import BRIDGE
from tests.ovs.test_attachments import PORTS, attached, config
from tests.waits import until

RATE = {"egressRate": 8_000_000, "egressBurst": 1_000_000}


@pytest.fixture
def port() -> Iterator[Netlink]:
    """The namespace of the link `port`, which has an ingress qdisc and no filter yet."""
    with namespaces(1) as [(_, netlink)]:
        netlink.batch(rtnl_encode.new_veth("port", "far"))
        netlink.batch(tc_encode.add_clsact(ifindex(netlink, "port")))
        yield netlink


def add_filter(port: Netlink) -> None:
    index = ifindex(port, "port")
    port.batch(tc_encode.add_mirred_filter(index, 1, kind="u32", priority=1, handle=1))


def test_a_filter_that_comes_later_is_waited_for(port: Netlink) -> None:
    later = threading.Timer(0.05, add_filter, [port])
    later.start()
    assert becomes_policed(port, "port", Cancel(10))
    later.join()
    assert becomes_policed(port, "port", Cancel(10))


def test_a_filter_that_never_comes_is_not_waited_for_for_ever(port: Netlink) -> None:
    start = time.monotonic()
    assert not becomes_policed(port, "port", Cancel(30))
    assert 1 < time.monotonic() - start < 20
    assert not becomes_policed(port, "none", Cancel(0))


def test_nobody_waits_for_a_caller_that_has_gone(port: Netlink) -> None:
    with pytest.raises(ClientGone):
        becomes_policed(port, "port", Cancel(30, lambda: True))


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A node whose Open vSwitch has its datapath in the kernel."""
    if reason := switch.missing(datapath="system"):
        pytest.skip(reason)
    with Node("ovs", "system") as made:
        assert made.switch
        made.switch.add_bridge(BRIDGE)
        made.start()
        yield made


def policed(node: Node, port: str) -> bool:
    shown = node.run(["tc", "filter", "show", "dev", port, "ingress"]).stdout
    return "police" in shown


@pytest.mark.parametrize("mode", ["veth", "tap"])
def test_the_kernel_datapath_polices_each_port(node: Node, mode: str) -> None:
    for _ in range(10):
        pod = node.pod()
        try:
            with attached(node, pod, config(node, mode, bandwidth=RATE)):
                # When the link changes, ovs-vswitchd takes the filter off and adds it anew.
                until(partial(policed, node, PORTS[mode]))
        finally:
            node.lab.drop(pod)
