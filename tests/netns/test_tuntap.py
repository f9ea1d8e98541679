"""Taps as the kernel has them: made, opened, reset, in a namespace of our own."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator

import pytest

from cni.kernel import rtnl_encode, tc_encode, tuntap
from cni.kernel.netlink import Busy, Exists, NotFound
from cni.kernel.rtnl_decode import TapInfo
from tests.netns.nslib import Pair, namespaces, open_descriptors, present

IFF_LOWER_UP = 0x10000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def pod() -> Iterator[Pair]:
    with namespaces(1) as [pair]:
        yield pair


def test_tap(pod: Pair) -> None:
    ns, netlink = pod
    with ns.entered():
        index = tuntap.create_tap("tap0", queues=2, owner=1234, group=5678)
        link = present(netlink.link("tap0"))
        assert (link.index, link.kind) == (index, "tun")
        with pytest.raises(Exists):
            tuntap.create_tap("tap0", queues=1)
        with pytest.raises(Exists):
            tuntap.create_tap("lo")
        fds = tuntap.open_tap("tap0", 2)
        try:
            assert not any(os.get_inheritable(fd) for fd in fds)
            netlink.batch(rtnl_encode.set_link(index, up=True))
            assert present(netlink.link("tap0")).flags & IFF_LOWER_UP
        finally:
            for fd in fds:
                os.close(fd)
        assert netlink.link("tap0") is not None
        with pytest.raises(NotFound):
            tuntap.open_tap("nowhere", 1)
        assert netlink.link("nowhere") is None


def test_a_tap_has_one_opener(pod: Pair) -> None:
    ns, _ = pod
    with ns.entered():
        tuntap.create_tap("tap0")
        [fd] = tuntap.open_tap("tap0")
        try:
            before = open_descriptors()
            with pytest.raises(Busy):
                tuntap.open_tap("tap0")
            assert open_descriptors() == before
        finally:
            os.close(fd)


def test_who_has_queues_of_a_tap(pod: Pair) -> None:
    """A detached queue counts, too: whoever has it open can attach it again."""
    ns, netlink = pod
    with ns.entered():
        tuntap.create_tap("tap0", queues=2, owner=1234)
        assert present(netlink.link("tap0")).tap == TapInfo(1234, None, True, 0)
        first, second = tuntap.open_tap("tap0", 2)
        try:
            assert present(present(netlink.link("tap0")).tap).queues == 2
            detach = tuntap.IFREQ.pack(b"", 0x0400)  # IFF_DETACH_QUEUE
            fcntl.ioctl(second, 0x400454D9, detach)  # TUNSETQUEUE
            assert present(present(netlink.link("tap0")).tap).queues == 2
        finally:
            os.close(first)
            os.close(second)
        assert present(netlink.link("tap0")).tap == TapInfo(1234, None, True, 0)
    assert present(netlink.link("lo")).tap is None


@pytest.mark.parametrize("queues", [1, 2])
def test_a_tap_is_reset(pod: Pair, queues: int) -> None:
    ns, netlink = pod
    with ns.entered():
        tuntap.create_tap("tap0", queues=queues)
        (fd,) = tuntap.open_tap("tap0", queues, most=1)
        fcntl.ioctl(fd, tuntap.TUNSETVNETHDRSZ, struct.pack("=i", 12))
        fcntl.ioctl(fd, tuntap.TUNSETTXFILTER, struct.pack("=HH6s", 0, 1, bytes(6)))
        if queues == 1:
            with pytest.raises(Busy):
                tuntap.reset_tap("tap0")
        os.close(fd)
        tuntap.reset_tap("tap0", queues)
        (fd,) = tuntap.open_tap("tap0", queues, most=1)
        size = bytearray(4)
        fcntl.ioctl(fd, 0x800454D7, size)  # TUNGETVNETHDRSZ
        os.close(fd)
        assert struct.unpack("=i", size) == (10,)
        assert present(netlink.link("tap0")).tap == TapInfo(None, None, True, 0)
        with pytest.raises(NotFound):
            tuntap.reset_tap("nowhere")


def test_layouts() -> None:
    """What is packed by hand has the sizes of the kernel's structures."""
    assert len(tc_encode.tc(1, 2, 3)) == 20
    assert tuntap.IFREQ.size == 40


@pytest.mark.parametrize(
    ("owner", "group", "uid"), [(None, None, 0), (5, None, 5), (None, 6, None)]
)
def test_a_tap_without_an_owner_is_roots(
    owner: int | None, group: int | None, uid: int | None
) -> None:
    assert tuntap.effective_owner(owner, group) == uid
