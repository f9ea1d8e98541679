"""Deletion that returns on the announcement."""

import errno
import os
import statistics
import time

import pytest

from cni.kernel import link_deleter as reaper_module
from cni.kernel import rtnl_encode
from cni.kernel.link_deleter import LinkDeleter
from cni.kernel.netlink import NetlinkError, Unsupported
from tests.netns.nslib import namespaces

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def pod():
    with namespaces(1) as [pair]:
        yield pair


@pytest.fixture
def reaper():
    made = LinkDeleter()
    yield made
    made.close()


def veths(netlink, count, group=0):
    names = [f"v{i}" for i in range(count)]
    netlink.batch(*(rtnl_encode.new_veth(x, f"p{x}", group=group) for x in names))
    return [netlink.index(x) for x in names]


@pytest.mark.parametrize("group", [None, 77])
def test_names_are_free_when_delete_returns(pod, reaper, group):
    ns, netlink = pod
    for _ in range(20):
        indexes = veths(netlink, 3, group or 0)
        reaper.delete(ns, group, indexes, 5)
        assert not any(netlink.link(index=i) for i in indexes)
        assert (
            netlink.attempt(*(rtnl_encode.new_veth(f"v{i}", f"w{i}") for i in range(3)))
            == [None] * 3
        )
        reaper.delete(ns, None, [netlink.index(f"v{i}") for i in range(3)], 5)


def test_group_takes_its_links_only(pod, reaper):
    ns, netlink = pod
    [other] = veths(netlink, 1)
    netlink.batch(rtnl_encode.new_veth("x", "y", group=8), rtnl_encode.new_veth("z", "zz"))
    reaper.delete(ns, 8, [netlink.index("x"), netlink.index("z")], 5)
    assert netlink.link(index=other)
    assert not netlink.link("x")
    assert netlink.link("z")


def test_absent_is_gone(pod, reaper):
    ns, netlink = pod
    [index] = veths(netlink, 1)
    reaper.delete(ns, 4711, [888, 999], 5)
    reaper.delete(ns, None, [888, index], 5)
    assert not netlink.link(index=index)
    reaper.delete(ns, None, [], 5)


def test_refusal_is_raised(pod, reaper):
    ns, netlink = pod
    [index] = veths(netlink, 1)
    with pytest.raises(Unsupported, match="delete link 1"):
        reaper.delete(ns, None, [1, index], 5)


def test_a_port_that_leaves_its_bridge_is_not_yet_gone(pod, monkeypatch):
    ns, netlink = pod
    netlink.batch(rtnl_encode.new_bridge("br0", up=True))
    netlink.batch(rtnl_encode.new_veth("a", "b", master=netlink.index("br0"), up=True))
    index = netlink.index("a")
    send = reaper_module._Deletion.send

    def late(self, data):
        netlink.batch(rtnl_encode.set_link(index, master=0))
        time.sleep(0.2)
        send(self, data)

    monkeypatch.setattr(reaper_module._Deletion, "send", late)
    made = LinkDeleter(1)
    made.delete(ns, None, [index], 5)
    assert netlink.link("a") is None
    made.close()


def test_overflow_falls_back_to_the_request(pod, monkeypatch):
    monkeypatch.setattr(reaper_module, "RECEIVE_BUFFER", 1)
    lost = []
    slow = reaper_module._Deletion.wait_for_requests

    def noted(self, timeout):
        lost.append(self)
        slow(self, timeout)

    wait = reaper_module._Deletion.wait

    def late(self, deadline):
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


def test_timeout_is_an_error_and_the_deletion_goes_on(pod, monkeypatch):
    ns, netlink = pod
    [index] = veths(netlink, 1)
    send = reaper_module._Deletion.send

    def late(self, data):
        time.sleep(0.3)
        send(self, data)

    monkeypatch.setattr(reaper_module._Deletion, "send", late)
    made = LinkDeleter(1)
    with pytest.raises(NetlinkError) as caught:
        made.delete(ns, None, [index], 0.05)
    assert caught.value.errno == errno.ETIMEDOUT
    made.close()
    assert netlink.link(index=index) is None


def test_descriptors_are_given_back(pod, reaper):
    ns, netlink = pod
    for _ in range(3):
        reaper.delete(ns, None, veths(netlink, 2), 5)
    reaper.close()
    before = len(os.listdir("/proc/self/fd"))
    again = LinkDeleter()
    for _ in range(5):
        again.delete(ns, None, veths(netlink, 2), 5)
    again.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_sooner_than_the_request(pod, reaper, told):
    ns, netlink = pod
    direct, reaped = [], []
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
