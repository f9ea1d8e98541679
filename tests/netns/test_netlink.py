"""The netlink layer against the kernel, in namespaces of our own."""

import errno
import fcntl
import os
import socket
import struct
import threading

import pytest

from cni.kernel import rtnl_encode, tc_encode, tuntap
from cni.kernel.netlink import Busy, Exists, NetlinkError, NotFound, Unsupported, encode, refused
from cni.kernel.rtnl_decode import QdiscInfo, TapInfo
from tests.netns.nslib import namespaces

MAC, MAC2 = "02:00:00:00:00:01", "02:00:00:00:00:02"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def pod():
    with namespaces(1) as [pair]:
        yield pair


@pytest.fixture
def two():
    with namespaces(2) as pairs:
        yield pairs


# batches


def test_veth_into_another_namespace(two):
    (_, host), (pod, inside) = two
    host.batch(rtnl_encode.new_bridge("br0", up=True))
    bridge = host.index("br0")
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
    near, far = host.link("vlh1"), inside.link("eth0")
    assert (near.mac, near.mtu, near.group, near.up, near.master) == (MAC, 1400, 5, True, bridge)
    assert (far.mac, far.mtu, far.group, far.up, far.master) == (MAC2, 1400, 6, False, 0)
    assert near.kind == far.kind == "veth"
    assert (near.link, far.link) == (far.index, near.index)
    assert near.link_netnsid is not None
    assert inside.link(index=far.index) == far
    with pod.entered(), open("/proc/net/dev") as lines:
        assert "eth0" in lines.read()


def test_errors_name_the_request_and_the_rest_is_done(pod):
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
    assert netlink.index("a") == netlink.link("b").link


def test_attempt_tells_of_each(pod):
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


def test_the_kernels_own_words(pod):
    _, netlink = pod
    with pytest.raises(NetlinkError, match=r"gateway.*: .* \(Nexthop has invalid gateway\)|via"):
        netlink.batch(rtnl_encode.add_route("10.9.0.0/16", gateway="10.8.0.1", index=1))
    netlink.batch(rtnl_encode.set_link(1, up=True))
    error = netlink.attempt(rtnl_encode.add_route("10.9.0.0/16", gateway="10.8.0.1", index=1))[0]
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
def test_class_by_errno(number, kind):
    error = refused(number, "do it", "for a reason")
    assert type(error) is kind
    assert error.code == 102
    assert error.msg == f"cannot do it: {os.strerror(number)} (for a reason)"


def test_a_full_bridge_is_named():
    assert "1023 ports" in refused(errno.EXFULL, "add veth v0").msg


def test_kinds_of_refusal_from_the_kernel(pod):
    _, netlink = pod
    assert isinstance(netlink.attempt(rtnl_encode.del_address(1, "10.0.0.9/32"))[0], NotFound)
    assert isinstance(netlink.attempt(rtnl_encode.del_link(group=12345))[0], NotFound)
    assert isinstance(netlink.attempt(rtnl_encode.del_link(index=1))[0], Unsupported)


def test_no_answer(pod):
    _, netlink = pod
    netlink.set_timeout(0.05)
    netlink._send = lambda *_: None
    with pytest.raises(NetlinkError) as caught:
        netlink.batch(rtnl_encode.set_link(1, up=True))
    assert caught.value.errno == errno.ETIMEDOUT


def test_late_answers_of_another_request_are_passed_over(pod):
    _, netlink = pod
    refusal = rtnl_encode.set_link(999, up=True)
    netlink.socket.send(encode(refusal, 0x50000000, rtnl_encode.NLM_F_ACK))
    netlink.socket.send(encode(rtnl_encode.get_link(index=1), 0x50000001))
    netlink.batch(rtnl_encode.set_link(1, up=True))
    netlink.socket.send(encode(rtnl_encode.get_link(index=999), 0x50000002))
    assert netlink.link("lo").up
    netlink.socket.send(encode(refusal, 0x50000003, rtnl_encode.NLM_F_ACK))
    assert "127.0.0.1/8" in netlink.addresses(1)


def test_shared_by_threads(pod):
    _, netlink = pod
    netlink.batch(*(rtnl_encode.new_veth(f"a{i}", f"b{i}") for i in range(8)))
    wrong = []

    def work(i):
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


# reading


def wired(netlink):
    netlink.batch(rtnl_encode.new_veth("a", "b", up=True))
    netlink.batch(rtnl_encode.set_link(netlink.index("b"), up=True))


def test_index_is_of_the_sockets_namespace(pod):
    _, netlink = pod
    netlink.batch(rtnl_encode.new_veth("vmlinkonly", "b"))
    assert netlink.index("vmlinkonly") == netlink.link("vmlinkonly").index
    assert netlink.index("none") is None
    assert netlink.link("none") is None
    assert netlink.link(index=9999) is None
    with pytest.raises(OSError, match="no interface"):
        socket.if_nametoindex("vmlinkonly")


def test_addresses_routes_neighbours(pod):
    _, netlink = pod
    wired(netlink)
    a, b = netlink.index("a"), netlink.index("b")
    netlink.batch(
        rtnl_encode.set_link(1, up=True),
        rtnl_encode.add_address(a, "10.1.2.3/24"),
        rtnl_encode.add_address(a, "fd00::3/64"),
        rtnl_encode.add_address(b, "10.7.7.7/32"),
        rtnl_encode.add_route("0.0.0.0/0", gateway="10.1.2.1", index=a, mtu=1300, advmss=1260),
        rtnl_encode.add_route("::/0", gateway="fd00::1", index=a, priority=7),
        rtnl_encode.add_route("10.50.0.0/16", gateway="10.6.6.6", index=a, onlink=True, table=1000),
        rtnl_encode.add_route("10.60.0.0/16", index=b),
        rtnl_encode.add_neighbour(a, "10.1.2.1", MAC),
        rtnl_encode.add_neighbour(a, "10.1.2.1", MAC2),
        rtnl_encode.add_neighbour(b, "10.1.2.1", MAC),
    )
    found = netlink.addresses(a)
    assert {"10.1.2.3/24", "fd00::3/64"} <= set(found)
    assert all(x.startswith(("10.1.2.3", "fd00::3", "fe80:")) for x in found)
    routes = {(r.dst, r.table): r for r in netlink.routes(a)}
    assert all(r.oif == a for r in routes.values())
    default = routes["0.0.0.0/0", 254]
    assert (default.gw, default.mtu, default.advmss, default.scope) == ("10.1.2.1", 1300, 1260, 0)
    assert routes["::/0", 254].priority == 7
    assert routes["10.50.0.0/16", 1000].gw == "10.6.6.6"
    assert routes["10.1.2.0/24", 254].protocol == 2
    assert ("10.60.0.0/16", 254) in {(r.dst, r.table) for r in netlink.routes()}
    [entry] = netlink.neighbours(a)
    assert (entry.ip, entry.mac, entry.state) == ("10.1.2.1", MAC2, 0x80)
    netlink.batch(rtnl_encode.del_address(a, "10.1.2.3/24"))
    assert "10.1.2.3/24" not in netlink.addresses(a)
    assert netlink.addresses(9999) == []


def test_addresses_are_ready_at_once(pod):
    _, netlink = pod
    wired(netlink)
    netlink.batch(rtnl_encode.add_address(netlink.index("a"), "fd00::3/64"))
    with pod[0].entered(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("fd00::3", 0))  # EADDRNOTAVAIL while duplicate detection runs


def test_addrgenmode_none_leaves_no_link_local(pod):
    _, netlink = pod
    netlink.batch(rtnl_encode.new_veth("a", "b"))
    a, b = netlink.index("a"), netlink.index("b")
    netlink.batch(
        rtnl_encode.set_link(a, addrgenmode_none=True),
        rtnl_encode.set_link(a, up=True),
        rtnl_encode.set_link(b, up=True),
    )
    assert netlink.addresses(a) == []
    assert [x[:4] for x in netlink.addresses(b)] == ["fe80"]


def test_set_link(pod):
    _, netlink = pod
    netlink.batch(rtnl_encode.new_bridge("br0"), rtnl_encode.new_veth("a", "b"))
    a, bridge = netlink.index("a"), netlink.index("br0")
    netlink.batch(
        rtnl_encode.set_link(
            a, up=True, mtu=1300, mac=MAC, master=bridge, group=9, name="renamed", promisc=True
        )
    )
    found = netlink.link(index=a)
    assert (found.name, found.mac, found.mtu, found.master) == ("renamed", MAC, 1300, bridge)
    assert (found.group, found.up, found.promisc) == (9, True, True)
    netlink.batch(rtnl_encode.set_link(a, master=0, up=False, promisc=False))
    found = netlink.link(index=a)
    assert (found.master, found.up, found.promisc) == (0, False, False)


def test_bridge_vlans(pod):
    _, netlink = pod
    netlink.batch(rtnl_encode.new_bridge("br0", MAC, 1400), rtnl_encode.new_veth("a", "b"))
    bridge = netlink.link("br0")
    assert (bridge.kind, bridge.mac, bridge.vlan_filtering) == ("bridge", MAC, False)
    a = netlink.index("a")
    if isinstance(netlink.attempt(rtnl_encode.set_vlan_filtering(bridge.index))[0], Unsupported):
        pytest.skip("this kernel has no CONFIG_BRIDGE_VLAN_FILTERING")
    netlink.batch(
        rtnl_encode.set_link(a, master=bridge.index),
        rtnl_encode.bridge_vlan(a, 1, untagged_pvid=True, delete=True),
        rtnl_encode.bridge_vlan(a, 42, untagged_pvid=True),
        rtnl_encode.bridge_vlan(a, 100, last=199, untagged_pvid=False),
        rtnl_encode.bridge_vlan(bridge.index, 42, untagged_pvid=False, on_bridge_itself=True),
    )
    assert netlink.link("br0").vlan_filtering is True
    gone = netlink.attempt(rtnl_encode.bridge_vlan(a, 1, untagged_pvid=True, delete=True))[0]
    assert isinstance(gone, NotFound)
    for index, vid in ((a, 42), (a, 100), (a, 199), (bridge.index, 42)):
        itself = index == bridge.index
        netlink.batch(
            rtnl_encode.bridge_vlan(
                index, vid, untagged_pvid=False, on_bridge_itself=itself, delete=True
            )
        )


def test_links(pod):
    _, netlink = pod
    netlink.batch(*(rtnl_encode.new_veth(f"a{i}", f"b{i}") for i in range(40)))
    found = netlink.links()
    assert {f"a{i}" for i in range(40)} | {f"b{i}" for i in range(40)} <= {x.name for x in found}
    assert netlink.link("a7") in found


def test_qdiscs(pod):
    _, netlink = pod
    netlink.batch(rtnl_encode.new_veth("a", "b"))
    a, b = netlink.index("a"), netlink.index("b")
    netlink.batch(tc_encode.add_clsact(a))
    assert [x.kind for x in netlink.qdiscs(a) if x.parent == tc_encode.CLSACT_PARENT] == ["clsact"]
    assert "clsact" not in [x.kind for x in netlink.qdiscs(b)]
    netlink.batch(tc_encode.del_clsact(a))
    assert "clsact" not in [x.kind for x in netlink.qdiscs(a)]


# taps


def test_the_root_qdisc(pod):
    _, netlink = pod
    ours, other = 0x47610000, 0x47620000
    netlink.batch(rtnl_encode.new_veth("v0", "v1"))
    index = netlink.index("v0")
    bucket = tc_encode.add_tbf(index, ours, rate=6_250_000, burst=1518, limit=160_000)
    assert netlink.root_qdisc(index) is None
    assert netlink.root_qdisc(99) is None
    netlink.batch(bucket)
    assert netlink.root_qdisc(index) == QdiscInfo("tbf", ours, tc_encode.ROOT, 6_250_000)
    with pytest.raises(Exists):
        netlink.batch(tc_encode.add_tbf(index, other, rate=1, burst=1518, limit=1))
    with pytest.raises(NetlinkError, match="Invalid handle"):
        netlink.batch(tc_encode.del_tbf(index, other))
    netlink.batch(tc_encode.del_tbf(index, ours))
    assert netlink.root_qdisc(index) is None
    assert netlink.link("v0").index == index


def test_tap(pod):
    ns, netlink = pod
    with ns.entered():
        index = tuntap.create_tap("tap0", queues=2, owner=1234, group=5678)
        link = netlink.link("tap0")
        assert (link.index, link.kind) == (index, "tun")
        with pytest.raises(Exists):
            tuntap.create_tap("tap0", queues=1)
        with pytest.raises(Exists):
            tuntap.create_tap("lo")
        fds = tuntap.open_tap("tap0", 2)
        try:
            assert not any(os.get_inheritable(fd) for fd in fds)
            netlink.batch(rtnl_encode.set_link(index, up=True))
            assert netlink.link("tap0").carrier
        finally:
            for fd in fds:
                os.close(fd)
        assert netlink.link("tap0") is not None
        with pytest.raises(NotFound):
            tuntap.open_tap("nowhere", 1)
        assert netlink.link("nowhere") is None


def test_a_tap_has_one_opener(pod):
    ns, _ = pod
    with ns.entered():
        tuntap.create_tap("tap0")
        [fd] = tuntap.open_tap("tap0")
        try:
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(Busy):
                tuntap.open_tap("tap0")
            assert len(os.listdir("/proc/self/fd")) == before
        finally:
            os.close(fd)


def test_who_has_queues_of_a_tap(pod):
    """Also of a queue that is detached, and could be attached again by who has it."""
    ns, netlink = pod
    with ns.entered():
        tuntap.create_tap("tap0", queues=2, owner=1234)
        assert netlink.link("tap0").tap == TapInfo(1234, None, True, 0)
        first, second = tuntap.open_tap("tap0", 2)
        try:
            assert netlink.link("tap0").tap.queues == 2
            detach = tuntap.IFREQ.pack(b"", 0x0400)  # IFF_DETACH_QUEUE
            fcntl.ioctl(second, 0x400454D9, detach)  # TUNSETQUEUE
            assert netlink.link("tap0").tap.queues == 2
        finally:
            os.close(first)
            os.close(second)
        assert netlink.link("tap0").tap == TapInfo(1234, None, True, 0)
    assert netlink.link("lo").tap is None


@pytest.mark.parametrize("queues", [1, 2])
def test_a_tap_is_reset(pod, queues):
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
        assert netlink.link("tap0").tap == TapInfo(None, None, True, 0)
        with pytest.raises(NotFound):
            tuntap.reset_tap("nowhere")


def test_layouts():
    """The sizes that the kernel's headers give for what is packed by hand."""
    assert len(tc_encode.tc(1, 2, 3)) == 20
    assert tuntap.IFREQ.size == 40
