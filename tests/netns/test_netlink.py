"""Netlink requests against the kernel: batches, errors, answers of others."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.kernel import rtnl_encode, rtnl_queries
from cni.kernel.netlink import Busy, Exists, NetlinkError, NotFound, Unsupported, refused
from cni.kernel.netlink_message import NLM_F_ACK, encode
from cni.kernel.route_encode import add_route
from tests.netns.nslib import Pair, first_error, ifindex, namespaces, the_link

MAC, MAC2 = "02:00:00:00:00:01", "02:00:00:00:00:02"
IFF_LOWER_UP = 0x10000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def pod() -> Iterator[Pair]:
    with namespaces(1) as [pair]:
        yield pair


@pytest.fixture
def two() -> Iterator[list[Pair]]:
    with namespaces(2) as pairs:
        yield pairs


def test_veth_into_another_namespace(two: list[Pair]) -> None:
    (_, host), (pod, inside) = two
    host.batch(rtnl_encode.new_bridge("br0", up=True))
    bridge = ifindex(host, "br0")
    host.batch(
        rtnl_encode.new_veth(
            "vlh1",
            "eth0",
            mac=MAC,
            peer_mac=MAC2,
            mtu=1400,
            peer_ns_fd=pod.fd,
            master=bridge,
            up=True,
            group=5,
            peer_group=6,
            queues=3,
        )
    )
    near, far = the_link(host, "vlh1"), the_link(inside, "eth0")
    assert (near.mac, near.mtu, near.group, near.up, near.master) == (MAC, 1400, 5, True, bridge)
    assert (far.mac, far.mtu, far.group, far.up, far.master) == (MAC2, 1400, 6, False, 0)
    assert near.kind == far.kind == "veth"
    assert (near.link, far.link) == (far.index, near.index)
    assert near.link_netnsid is not None
    assert inside.link(index=far.index) == far
    with pod.entered():
        assert "eth0" in Path("/proc/net/dev").read_text()


def test_errors_name_the_request_and_the_rest_is_done(pod: Pair) -> None:
    _, netlink = pod
    with pytest.raises(Exists) as caught:
        netlink.batch(
            rtnl_encode.new_veth("a", "b"),
            rtnl_encode.add_address(1, "10.0.0.2/24", on="lo"),
            rtnl_encode.add_address(1, "10.0.0.2/24", on="lo"),
            rtnl_encode.set_link(999, up=True),
            rtnl_encode.add_address(1, "10.0.0.3/24", on="lo"),
        )
    error = caught.value
    assert (error.position, error.errno) == (2, errno.EEXIST)
    assert error.msg.startswith("cannot add address 10.0.0.2/24 to lo: File exists")
    assert error.what == "add address 10.0.0.2/24 to lo"
    assert {"10.0.0.2/24", "10.0.0.3/24"} <= set(netlink.addresses(1))
    # The socket is in step again.
    assert ifindex(netlink, "a") == the_link(netlink, "b").link


def test_attempt_tells_of_each(pod: Pair) -> None:
    _, netlink = pod
    outcome = netlink.attempt(
        rtnl_encode.set_link(999, up=True),
        rtnl_encode.new_veth("a", "b"),
        rtnl_encode.new_veth("a", "c"),
    )
    assert isinstance(outcome[0], NotFound)
    assert outcome[1] is None
    assert isinstance(outcome[2], Exists)
    assert [getattr(error, "position", None) for error in outcome] == [0, None, 2]


def test_the_kernels_own_words(pod: Pair) -> None:
    _, netlink = pod
    with pytest.raises(NetlinkError, match=r"gateway.*: .* \(Nexthop has invalid gateway\)|via"):
        netlink.batch(add_route("10.9.0.0/16", gateway="10.8.0.1", index=1))
    netlink.batch(rtnl_encode.set_link(1, up=True))
    error = first_error(netlink, add_route("10.9.0.0/16", gateway="10.8.0.1", index=1))
    assert error
    assert error.reason
    assert error.reason in error.msg


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENODEV, NotFound),
        (errno.ENOENT, NotFound),
        (errno.ESRCH, NotFound),
        (errno.EADDRNOTAVAIL, NotFound),
        (errno.EEXIST, Exists),
        (errno.EBUSY, Busy),
        (errno.EOPNOTSUPP, Unsupported),
        (errno.EAFNOSUPPORT, Unsupported),
        (errno.EPROTONOSUPPORT, Unsupported),
        (errno.EINVAL, NetlinkError),
    ],
)
def test_class_by_errno(number: int, kind: type[NetlinkError]) -> None:
    error = refused(number, "do it", "for a reason")
    assert type(error) is kind
    assert error.code == 102
    assert error.msg == f"cannot do it: {os.strerror(number)} (for a reason)"


def test_a_full_bridge_is_named() -> None:
    assert "1023 ports" in refused(errno.EXFULL, "add veth v0").msg


def test_kinds_of_refusal_from_the_kernel(pod: Pair) -> None:
    _, netlink = pod
    assert isinstance(first_error(netlink, rtnl_encode.del_link(group=12345)), NotFound)
    assert isinstance(first_error(netlink, rtnl_encode.del_link(index=1)), Unsupported)


def test_no_answer(pod: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    _, netlink = pod
    netlink.set_timeout(0.05)
    monkeypatch.setattr(netlink, "_send", lambda *_: None)
    with pytest.raises(NetlinkError) as caught:
        netlink.batch(rtnl_encode.set_link(1, up=True))
    assert caught.value.errno == errno.ETIMEDOUT


def test_late_answers_of_another_request_are_passed_over(pod: Pair) -> None:
    _, netlink = pod
    refusal = rtnl_encode.set_link(999, up=True)
    netlink.socket.send(encode(refusal, 0x50000000, NLM_F_ACK))
    netlink.socket.send(encode(rtnl_queries.get_link(index=1), 0x50000001))
    netlink.batch(rtnl_encode.set_link(1, up=True))
    netlink.socket.send(encode(rtnl_queries.get_link(index=999), 0x50000002))
    assert the_link(netlink, "lo").up
    netlink.socket.send(encode(refusal, 0x50000003, NLM_F_ACK))
    assert "127.0.0.1/8" in netlink.addresses(1)


def test_shared_by_threads(pod: Pair) -> None:
    _, netlink = pod
    netlink.batch(*(rtnl_encode.new_veth(f"a{i}", f"b{i}") for i in range(8)))
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(100):
            found = netlink.link(f"a{i}")
            if found is None or found.name != f"a{i}" or netlink.link(f"none{i}"):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
