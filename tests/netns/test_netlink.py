"""The netlink layer against the kernel, in namespaces of our own."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cni.kernel import ethtool, rtnl_encode, rtnl_queries, tc_encode, tuntap
from cni.kernel.netlink import Busy, Exists, Netlink, NetlinkError, NotFound, Unsupported, refused
from cni.kernel.netlink_message import NLM_F_ACK, encode
from cni.kernel.netns import Namespace
from cni.kernel.rtnl_decode import LinkInfo, QdiscInfo, TapInfo
from tests.netns.nslib import namespaces

MAC, MAC2 = "02:00:00:00:00:01", "02:00:00:00:00:02"
IFF_LOWER_UP = 0x10000
Pod = tuple[Namespace, Netlink]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def pod() -> Iterator[Pod]:
    with namespaces(1) as [pair]:
        yield pair


@pytest.fixture
def two() -> Iterator[list[Pod]]:
    with namespaces(2) as pairs:
        yield pairs


def the_link(netlink: Netlink, name: str) -> LinkInfo:
    """The link, which must be there."""
    found = netlink.link(name)
    assert found, f"no link {name}"
    return found


def ifindex(netlink: Netlink, name: str) -> int:
    """Its ifindex."""
    found = netlink.index(name)
    assert found, f"no link {name}"
    return found


def first_error(netlink: Netlink, message: rtnl_encode.Message) -> NetlinkError | None:
    return netlink.attempt(message)[0]


# batches


def test_veth_into_another_namespace(two: list[Pod]) -> None:
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


def test_errors_name_the_request_and_the_rest_is_done(pod: Pod) -> None:
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


def test_attempt_tells_of_each(pod: Pod) -> None:
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


def test_the_kernels_own_words(pod: Pod) -> None:
    _, netlink = pod
    with pytest.raises(NetlinkError, match=r"gateway.*: .* \(Nexthop has invalid gateway\)|via"):
        netlink.batch(rtnl_encode.add_route("10.9.0.0/16", gateway="10.8.0.1", index=1))
    netlink.batch(rtnl_encode.set_link(1, up=True))
    error = first_error(netlink, rtnl_encode.add_route("10.9.0.0/16", gateway="10.8.0.1", index=1))
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


def test_kinds_of_refusal_from_the_kernel(pod: Pod) -> None:
    _, netlink = pod
    assert isinstance(first_error(netlink, rtnl_encode.del_link(group=12345)), NotFound)
    assert isinstance(first_error(netlink, rtnl_encode.del_link(index=1)), Unsupported)


def test_no_answer(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    _, netlink = pod
    netlink.set_timeout(0.05)
    monkeypatch.setattr(netlink, "_send", lambda *_: None)
    with pytest.raises(NetlinkError) as caught:
        netlink.batch(rtnl_encode.set_link(1, up=True))
    assert caught.value.errno == errno.ETIMEDOUT


def test_late_answers_of_another_request_are_passed_over(pod: Pod) -> None:
    _, netlink = pod
    refusal = rtnl_encode.set_link(999, up=True)
    netlink.socket.send(encode(refusal, 0x50000000, NLM_F_ACK))
    netlink.socket.send(encode(rtnl_queries.get_link(index=1), 0x50000001))
    netlink.batch(rtnl_encode.set_link(1, up=True))
    netlink.socket.send(encode(rtnl_queries.get_link(index=999), 0x50000002))
    assert the_link(netlink, "lo").up
    netlink.socket.send(encode(refusal, 0x50000003, NLM_F_ACK))
    assert "127.0.0.1/8" in netlink.addresses(1)


def test_shared_by_threads(pod: Pod) -> None:
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


# reading


def wired(netlink: Netlink) -> None:
    netlink.batch(rtnl_encode.new_veth("a", "b", up=True))
    netlink.batch(rtnl_encode.set_link(ifindex(netlink, "b"), up=True))


def test_index_is_of_the_sockets_namespace(pod: Pod) -> None:
    _, netlink = pod
    netlink.batch(rtnl_encode.new_veth("vmlinkonly", "b"))
    assert ifindex(netlink, "vmlinkonly") == the_link(netlink, "vmlinkonly").index
    assert netlink.index("none") is None
    assert netlink.link("none") is None
    assert netlink.link(index=9999) is None
    with pytest.raises(OSError, match="no interface"):
        socket.if_nametoindex("vmlinkonly")


def test_addresses_routes_neighbours(pod: Pod) -> None:
    _, netlink = pod
    wired(netlink)
    a, b = ifindex(netlink, "a"), ifindex(netlink, "b")
    netlink.batch(
        rtnl_encode.set_link(1, up=True),
        rtnl_encode.add_address(a, "10.1.2.3/24"),
        rtnl_encode.add_address(a, "fd00::3/64"),
        rtnl_encode.add_address(b, "10.7.7.7/32"),
        rtnl_encode.add_route("0.0.0.0/0", gateway="10.1.2.1", index=a, mtu=1300, advmss=1260),
        rtnl_encode.add_route("::/0", gateway="fd00::1", index=a, priority=7),
        rtnl_encode.add_route("10.50.0.0/16", gateway="10.1.2.9", index=a, table=1000),
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
    assert routes["0.0.0.0/0", 254].gw == "10.1.2.1"
    assert routes["::/0", 254].gw == "fd00::1"
    assert routes["10.50.0.0/16", 1000].gw == "10.1.2.9"
    assert routes["10.1.2.0/24", 254].protocol == 2
    assert ("10.60.0.0/16", 254) in {(r.dst, r.table) for r in netlink.routes()}
    [entry] = netlink.neighbours(a)
    assert (entry.ip, entry.mac, entry.state) == ("10.1.2.1", MAC2, 0x80)
    assert netlink.addresses(9999) == []


def test_metrics_of_a_route(pod: Pod) -> None:
    ns, netlink = pod
    wired(netlink)
    a = ifindex(netlink, "a")
    netlink.batch(
        rtnl_encode.add_address(a, "10.1.2.3/24"),
        rtnl_encode.add_route("0.0.0.0/0", gateway="10.1.2.1", index=a, mtu=1300, advmss=1260),
        rtnl_encode.add_route("10.6.0.0/16", index=a, priority=7, scope=200),
    )
    default = shown(ns, "0.0.0.0/0")
    assert default["metrics"] == [{"mtu": 1300, "advmss": 1260}]
    near = shown(ns, "10.6.0.0/16")
    assert (near["metric"], near["scope"]) == (7, "site")


def shown(ns: Namespace, destination: str) -> dict[str, Any]:
    """The route as ip-route(8) shows it."""
    command = ["ip", "-json", "route", "show", "exact", destination]
    with ns.entered():
        done = subprocess.run(command, capture_output=True, check=True)
    [route] = json.loads(done.stdout)
    assert isinstance(route, dict)
    return route


def test_addresses_are_ready_at_once(pod: Pod) -> None:
    _, netlink = pod
    wired(netlink)
    netlink.batch(rtnl_encode.add_address(ifindex(netlink, "a"), "fd00::3/64"))
    with pod[0].entered(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("fd00::3", 0))  # EADDRNOTAVAIL while duplicate detection runs


def test_addrgenmode_none_leaves_no_link_local(pod: Pod) -> None:
    _, netlink = pod
    netlink.batch(rtnl_encode.new_veth("a", "b"))
    a, b = ifindex(netlink, "a"), ifindex(netlink, "b")
    netlink.batch(
        rtnl_encode.set_link(a, addrgenmode_none=True),
        rtnl_encode.set_link(a, up=True),
        rtnl_encode.set_link(b, up=True),
    )
    assert netlink.addresses(a) == []
    assert [x[:4] for x in netlink.addresses(b)] == ["fe80"]


def test_set_link(pod: Pod) -> None:
    _, netlink = pod
    netlink.batch(rtnl_encode.new_bridge("br0"), rtnl_encode.new_veth("a", "b"))
    a, bridge = ifindex(netlink, "a"), ifindex(netlink, "br0")
    netlink.batch(
        rtnl_encode.set_link(a, up=True, mtu=1300, mac=MAC, master=bridge, group=9, name="renamed")
    )
    changed = the_link(netlink, "renamed")
    assert (changed.index, changed.mac, changed.mtu, changed.master) == (a, MAC, 1300, bridge)
    assert (changed.group, changed.up) == (9, True)
    netlink.batch(rtnl_encode.set_link(a, master=0, up=False))
    changed = the_link(netlink, "renamed")
    assert (changed.master, changed.up) == (0, False)


def test_bridge_vlans(pod: Pod) -> None:
    _, netlink = pod
    netlink.batch(rtnl_encode.new_bridge("br0", MAC, 1400), rtnl_encode.new_veth("a", "b"))
    bridge = the_link(netlink, "br0")
    assert (bridge.kind, bridge.mac, bridge.vlan_filtering) == ("bridge", MAC, False)
    a = ifindex(netlink, "a")
    if isinstance(first_error(netlink, rtnl_encode.set_vlan_filtering(bridge.index)), Unsupported):
        pytest.skip("this kernel has no CONFIG_BRIDGE_VLAN_FILTERING")
    netlink.batch(
        rtnl_encode.set_link(a, master=bridge.index),
        rtnl_encode.bridge_vlan(a, 1, untagged_pvid=True, delete=True),
        rtnl_encode.bridge_vlan(a, 42, untagged_pvid=True),
        rtnl_encode.bridge_vlan(bridge.index, 42, untagged_pvid=False, on_bridge_itself=True),
    )
    assert the_link(netlink, "br0").vlan_filtering is True
    again = rtnl_encode.bridge_vlan(a, 1, untagged_pvid=True, delete=True)
    assert isinstance(first_error(netlink, again), NotFound)
    for index in (a, bridge.index):
        itself = index == bridge.index
        netlink.batch(
            rtnl_encode.bridge_vlan(
                index, 42, untagged_pvid=False, on_bridge_itself=itself, delete=True
            )
        )


def test_links(pod: Pod) -> None:
    _, netlink = pod
    netlink.batch(*(rtnl_encode.new_veth(f"a{i}", f"b{i}") for i in range(40)))
    found = netlink.links()
    assert {f"a{i}" for i in range(40)} | {f"b{i}" for i in range(40)} <= {x.name for x in found}
    assert netlink.link("a7") in found


def test_the_root_qdisc(pod: Pod) -> None:
    _, netlink = pod
    ours, other = 0x47610000, 0x47620000
    netlink.batch(rtnl_encode.new_veth("v0", "v1"))
    index = ifindex(netlink, "v0")
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
    assert the_link(netlink, "v0").index == index


# taps


def test_tap(pod: Pod) -> None:
    ns, netlink = pod
    with ns.entered():
        index = tuntap.create_tap("tap0", queues=2, owner=1234, group=5678)
        link = the_link(netlink, "tap0")
        assert (link.index, link.kind) == (index, "tun")
        with pytest.raises(Exists):
            tuntap.create_tap("tap0", queues=1)
        with pytest.raises(Exists):
            tuntap.create_tap("lo")
        fds = tuntap.open_tap("tap0", 2)
        try:
            assert not any(os.get_inheritable(fd) for fd in fds)
            netlink.batch(rtnl_encode.set_link(index, up=True))
            assert the_link(netlink, "tap0").flags & IFF_LOWER_UP
        finally:
            for fd in fds:
                os.close(fd)
        assert netlink.link("tap0") is not None
        with pytest.raises(NotFound):
            tuntap.open_tap("nowhere", 1)
        assert netlink.link("nowhere") is None


def test_a_tap_has_one_opener(pod: Pod) -> None:
    ns, _ = pod
    with ns.entered():
        tuntap.create_tap("tap0")
        [fd] = tuntap.open_tap("tap0")
        try:
            before = descriptors()
            with pytest.raises(Busy):
                tuntap.open_tap("tap0")
            assert descriptors() == before
        finally:
            os.close(fd)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_open_queues_of_a_tap_are_counted(pod: Pod) -> None:
    """A detached queue is as well: its program can attach it again."""
    ns, netlink = pod
    with ns.entered():
        tuntap.create_tap("tap0", queues=2, owner=1234)
        assert the_link(netlink, "tap0").tap == TapInfo(1234, None, True, 0)
        first, second = tuntap.open_tap("tap0", 2)
        try:
            assert the_link(netlink, "tap0").tap == TapInfo(1234, None, True, 2)
            detach = tuntap.IFREQ.pack(b"", 0x0400)  # IFF_DETACH_QUEUE
            fcntl.ioctl(second, 0x400454D9, detach)  # TUNSETQUEUE
            assert the_link(netlink, "tap0").tap == TapInfo(1234, None, True, 2)
        finally:
            os.close(first)
            os.close(second)
        assert the_link(netlink, "tap0").tap == TapInfo(1234, None, True, 0)
    assert the_link(netlink, "lo").tap is None


@pytest.mark.parametrize("queues", [1, 2])
def test_a_tap_is_reset(pod: Pod, queues: int) -> None:
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
        assert the_link(netlink, "tap0").tap == TapInfo(None, None, True, 0)
        with pytest.raises(NotFound):
            tuntap.reset_tap("nowhere")


def test_layouts() -> None:
    """The sizes that the kernel's headers give for what is packed by hand."""
    assert len(tc_encode.tc(1, 2, 3)) == 20
    assert tuntap.IFREQ.size == 40


@pytest.mark.parametrize(
    ("owner", "group", "uid"), [(None, None, 0), (5, None, 5), (None, 6, None)]
)
def test_a_tap_without_an_owner_is_roots(
    owner: int | None, group: int | None, uid: int | None
) -> None:
    assert tuntap.effective_owner(owner, group) == uid


def test_an_offload_that_cannot_be_read_or_set_is_named(pod: Pod) -> None:
    with pod[0].entered():
        with pytest.raises(NotFound, match="cannot read TX checksum offload of nowhere: "):
            ethtool.tx_checksum("nowhere")
        with pytest.raises(NotFound, match="cannot turn TX checksum offload off on nowhere: "):
            ethtool.stop_tx_checksum("nowhere")
