"""What `bench datapath` measures, between real namespaces: its figures are what really passed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bench.contenders.datapaths import Endpoints, TwoVeths, VethPod
from bench.testbed import traffic
from bench.testbed.guest import GuestError
from bench.testbed.node import Node
from cni.kernel import redirect

OVERHEAD = 42  # bytes of Ethernet, IPv4 and UDP around the payload
SLOW = 8_000_000  # bit/s


@pytest.fixture(scope="module")
def bridged(node: Node) -> Iterator[Endpoints]:
    with ExitStack() as stack:
        yield TwoVeths().open(node, "wired", stack)


def test_nothing_is_lost_where_nothing_limits(bridged: Endpoints) -> None:
    found = traffic.flood(bridged.near, bridged.far_ip, 0.1)
    assert found.kpps > 1
    assert found.loss < 50  # other work of the machine may cause some
    assert 10 < found.cpu_ns < 1e6


def test_what_a_limit_lets_through_is_counted_and_the_rest_is_lost(
    node: Node, bridged: Endpoints
) -> None:
    """A full bucket passes on top of the rate; that is less than one percent more."""
    middle = node.lab.dir / "ns-wired-1"
    limit = f"tbf rate {SLOW}bit burst 1600 limit 3000"
    node.run(f"tc qdisc add dev m1 root {limit}".split(), middle)
    try:
        found = traffic.flood(bridged.near, bridged.far_ip, 0.4)
    finally:
        node.run("tc qdisc del dev m1 root".split(), middle)
    full = SLOW / 8 / (traffic.PAYLOAD + OVERHEAD) / 1000
    assert 0.3 * full < found.kpps < 1.1 * full
    assert found.loss > 20


def test_every_question_has_an_answer(bridged: Endpoints) -> None:
    times = traffic.round_trips(bridged.near, bridged.far_ip, 200)
    assert len(times) == 200
    assert all(0 < time < 1e6 for time in times)
    with traffic.udp_server(bridged.near) as port:
        assert len(traffic.round_trips(bridged.far, bridged.near_ip, 3, port)) == 3


@pytest.mark.parametrize("reverse", [False, True])
def test_tcp_brings_as_many_bytes_as_were_asked_for(bridged: Endpoints, reverse: bool) -> None:
    size = 256 << 20
    found = traffic.tcp(bridged.near, bridged.far_ip, size, 2, reverse)
    # iperf3 leaves out what is still in the sockets' buffers at the end: megabytes per stream.
    assert 0.75 * size < found.octets < 1.5 * size
    assert found.gbps > 0


def test_each_engine_forwards_both_ways(node: Node) -> None:
    for engine, reason in redirect.supported().items():
        if not reason:
            with ExitStack() as stack:
                ends = TwoVeths(engine).open(node, f"wired-{engine}", stack)
                assert len(traffic.round_trips(ends.near, ends.far_ip, 3)) == 3


def test_a_plain_pod_is_reached_through_the_bridge(node: Node) -> None:
    with ExitStack() as stack:
        ends = VethPod().open(node, "plain", stack)
        assert len(traffic.round_trips(ends.near, ends.far_ip, 3)) == 3
    node.run("ip link del demo0".split())


def test_who_does_not_answer_is_told(bridged: Endpoints) -> None:
    with pytest.raises(GuestError, match="unreachable"):
        bridged.near.run("traffic ask 10.9.9.9 7000 1 32")
    with pytest.raises(GuestError, match="more than 1 s"):
        bridged.near.run(f"traffic ask {bridged.far_ip} 7999 1 32", 1)
    with pytest.raises(GuestError, match="32-1472"):
        bridged.near.run(f"traffic ask {bridged.far_ip} 7000 1 31")
