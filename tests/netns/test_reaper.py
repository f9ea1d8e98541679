"""Deletion that returns on the announcement."""

from __future__ import annotations

import errno
import os
import statistics
import time
from collections.abc import Iterator

import pytest

from cni.kernel import link_deleter as reaper_module
from cni.kernel import rtnl_encode
from cni.kernel.link_deleter import LinkDeleter
from cni.kernel.netlink import Netlink, NetlinkError, Unsupported
from tests.netns.nslib import Pair, namespaces, open_descriptors, present

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def pod() -> Iterator[Pair]:
    with namespaces(1) as [pair]:
        yield pair


@pytest.fixture
def reaper() -> Iterator[LinkDeleter]:
    made = LinkDeleter()
    yield made
    made.close()


def veths(netlink: Netlink, count: int, group: int = 0) -> list[int]:
    names = [f"v{i}" for i in range(count)]
    netlink.batch(*(rtnl_encode.new_veth(x, f"p{x}", group=group) for x in names))
    return [present(netlink.index(x)) for x in names]


@pytest.mark.parametrize("group", [None, 77])
def test_names_are_free_when_delete_returns(
    pod: Pair, reaper: LinkDeleter, group: int | None
) -> None:
    ns, netlink = pod
    for _ in range(20):
        indexes = veths(netlink, 3, group or 0)
        reaper.delete(ns, group, indexes, 5)
        assert not any(netlink.link(index=i) for i in indexes)
        assert (
            netlink.attempt(*(rtnl_encode.new_veth(f"v{i}", f"w{i}") for i in range(3)))
            == [None] * 3
        )
        reaper.delete(ns, None, [present(netlink.index(f"v{i}")) for i in range(3)], 5)


def test_group_takes_its_links_only(pod: Pair, reaper: LinkDeleter) -> None:
    ns, netlink = pod
    [other] = veths(netlink, 1)
    netlink.batch(rtnl_encode.new_veth("x", "y", group=8), rtnl_encode.new_veth("z", "zz"))
    reaper.delete(ns, 8, [present(netlink.index("x")), present(netlink.index("z"))], 5)
    assert netlink.link(index=other)
    assert not netlink.link("x")
    assert netlink.link("z")


def test_absent_is_gone(pod: Pair, reaper: LinkDeleter) -> None:
    ns, netlink = pod
    [index] = veths(netlink, 1)
    reaper.delete(ns, 4711, [888, 999], 5)
    reaper.delete(ns, None, [888, index], 5)
    assert not netlink.link(index=index)
    reaper.delete(ns, None, [], 5)


def test_refusal_is_raised(pod: Pair, reaper: LinkDeleter) -> None:
    ns, netlink = pod
    [index] = veths(netlink, 1)
    with pytest.raises(Unsupported, match="delete link 1"):
        reaper.delete(ns, None, [1, index], 5)


def test_a_port_that_leaves_its_bridge_is_not_yet_gone(
    pod: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    ns, netlink = pod
    netlink.batch(rtnl_encode.new_bridge("br0", up=True))
    netlink.batch(rtnl_encode.new_veth("a", "b", master=netlink.index("br0"), up=True))
    index = present(netlink.index("a"))
    send = reaper_module._Deletion.send

    def late(self: reaper_module._Deletion, data: bytes) -> None:
        netlink.batch(rtnl_encode.set_link(index, master=0))
        time.sleep(0.2)
        send(self, data)

    monkeypatch.setattr(reaper_module._Deletion, "send", late)
    made = LinkDeleter(1)
    made.delete(ns, None, [index], 5)
    assert netlink.link("a") is None
    made.close()


def test_overflow_falls_back_to_the_request(pod: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper_module, "RECEIVE_BUFFER", 1)
    lost: list[reaper_module._Deletion] = []
    slow = reaper_module._Deletion.wait_for_requests

    def noted(self: reaper_module._Deletion, timeout: float) -> None:
        lost.append(self)
        slow(self, timeout)

    wait = reaper_module._Deletion.wait

    def late(self: reaper_module._Deletion, deadline: float) -> None:
        time.sleep(0.1)
        wait(self, deadline)

    monkeypatch.setattr(reaper_module._Deletion, "wait_for_requests", noted)
    monkeypatch.setattr(reaper_module._Deletion, "wait", late)
    ns, netlink = pod
    indexes = veths(netlink, 30, group=6)
    made = LinkDeleter(1)
    try:
        made.delete(ns, 6, indexes, 5)
        assert not any(netlink.link(index=i) for i in indexes)
    finally:
        made.close()
    assert lost, "the small buffer did not overflow"


def test_timeout_is_an_error_and_the_deletion_goes_on(
    pod: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    ns, netlink = pod
    [index] = veths(netlink, 1)
    send = reaper_module._Deletion.send

    def late(self: reaper_module._Deletion, data: bytes) -> None:
        time.sleep(0.3)
        send(self, data)

    monkeypatch.setattr(reaper_module._Deletion, "send", late)
    made = LinkDeleter(1)
    with pytest.raises(NetlinkError) as caught:
        made.delete(ns, None, [index], 0.05)
    assert caught.value.errno == errno.ETIMEDOUT
    made.close()
    assert netlink.link(index=index) is None


def test_descriptors_are_given_back(pod: Pair, reaper: LinkDeleter) -> None:
    ns, netlink = pod
    for _ in range(3):
        reaper.delete(ns, None, veths(netlink, 2), 5)
    reaper.close()
    before = open_descriptors()
    again = LinkDeleter()
    for _ in range(5):
        again.delete(ns, None, veths(netlink, 2), 5)
    again.close()
    assert open_descriptors() == before


def test_sooner_than_the_request(pod: Pair, reaper: LinkDeleter, told: list[str]) -> None:
    ns, netlink = pod
    direct: list[float] = []
    reaped: list[float] = []
    for _ in range(8):
        for times in (direct, reaped):
            [index] = veths(netlink, 1)
            start = time.perf_counter()
            if times is direct:
                netlink.batch(rtnl_encode.del_link(index))
            else:
                reaper.delete(ns, None, [index], 5)
            times.append(time.perf_counter() - start)
    ratio = statistics.median(direct) / statistics.median(reaped)
    told.append(f"deletion: the request takes {ratio:.1f} times the reaper's")
    assert ratio > 1
