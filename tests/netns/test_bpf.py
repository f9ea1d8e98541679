"""Redirects that frames really take, by each engine; and what others attached stays theirs.

The wire: (outside) far -- near (pod) <=redirect=> guest (pod) -- vm (outside)
"""

import ctypes
import errno
import json
import os
import struct
import subprocess
from contextlib import contextmanager

import pytest

from cni.errors import CheckFailed, NotReady
from cni.kernel import bpf, redirect, rtnl_encode, tc_encode
from cni.kernel.netlink import Exists, Netlink, NetlinkError, NotFound
from cni.kernel.netns import Namespace, libc
from tests.netns.nslib import namespaces, next_frame, packet_socket

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

BROADCAST = b"\xff" * 6
SOURCE = bytes.fromhex("020000000001")


def frame(payload, tag=0):
    inner = struct.pack("!H", 0x88B5) + payload.ljust(60, b".")
    if tag:
        inner = struct.pack("!HH", 0x8100, tag) + inner
    return BROADCAST + SOURCE + inner


class Wire:
    """Two veths with one end of each in the pod, to be redirected between."""

    def __init__(self, pod, outside):
        self.ns, self.netlink = pod
        self.outside_ns, outside_netlink = outside
        self.netlink.batch(
            rtnl_encode.new_veth("near", "far", peer_ns_fd=self.outside_ns.fd, up=True),
            rtnl_encode.new_veth("guest", "vm", peer_ns_fd=self.outside_ns.fd, up=True),
        )
        self.near, self.guest = self.netlink.index("near"), self.netlink.index("guest")
        outside_netlink.batch(
            *(rtnl_encode.set_link(outside_netlink.index(x), up=True) for x in ("far", "vm"))
        )

    @contextmanager
    def sockets(self):
        with (
            packet_socket(self.outside_ns, "far") as far,
            packet_socket(self.outside_ns, "vm") as vm,
        ):
            yield far, vm

    def passes(self, tag=0):
        """Both ways; returns the tags that arrived."""
        with self.sockets() as (far, vm):
            tags = []
            for sender, receiver, words in ((far, vm, b"to the vm"), (vm, far, b"from the vm")):
                sender.send(frame(words, tag))
                tags.append(next_frame(receiver, words)[1] & 0xFFF)
            return tags

    def blocked(self):
        with self.sockets() as (far, vm):
            for sender, receiver in ((far, vm), (vm, far)):
                sender.send(frame(b"lost"))
                receiver.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    next_frame(receiver, b"lost")
        return True

    def attach(self, engine):
        with self.ns.entered():
            redirect.attach(engine, self.netlink, self.near, self.guest)

    def detach(self, engine):
        with self.ns.entered():
            for index in (self.near, self.guest):
                redirect.detach(engine, self.netlink, index)

    def check(self, engine):
        with self.ns.entered():
            redirect.check(engine, self.netlink, self.near, self.guest)

    def clsact(self, index):
        return [x for x in self.qdiscs(index) if x["kind"] == "clsact"]

    def qdiscs(self, index):
        """As tc(8) lists them."""
        command = ["tc", "-json", "qdisc", "show", "dev", self.netlink.link(index=index).name]
        with self.ns.entered():
            done = subprocess.run(command, capture_output=True, check=True)
        return json.loads(done.stdout or "[]")


@pytest.fixture
def wire():
    with namespaces(2) as [pod, outside]:
        yield Wire(pod, outside)


@pytest.fixture(params=redirect.ENGINES)
def engine(request):
    if reason := redirect.supported()[request.param]:
        pytest.skip(reason)
    return request.param


def test_frames_cross_both_ways_and_detach_restores(wire, engine):
    assert wire.blocked()
    wire.attach(engine)
    wire.check(engine)
    assert wire.passes() == [0, 0]
    wire.detach(engine)
    assert wire.blocked()
    assert not wire.clsact(wire.near)
    assert not wire.clsact(wire.guest)
    with pytest.raises(CheckFailed, match="is gone"):
        wire.check(engine)
    wire.detach(engine)


def test_vlan_tags_cross(wire, engine):
    wire.attach(engine)
    assert wire.passes(tag=42) == [42, 42]


def test_attached_once(wire, engine):
    wire.attach(engine)
    with pytest.raises(Exists):
        wire.attach(engine)
    assert wire.passes() == [0, 0]
    wire.detach(engine)
    assert wire.blocked()
    assert not wire.clsact(wire.near)


@pytest.mark.parametrize("first", ["near", "guest"])
def test_a_failed_attach_leaves_nothing(wire, engine, first):
    index = getattr(wire, first)
    pair = (index, 999) if first == "near" else (999, index)
    with wire.ns.entered():
        with pytest.raises(NotFound):
            redirect.attach(engine, wire.netlink, *pair)
        assert bpf.tcx_programs(index) == []
    assert not wire.clsact(index)


def test_an_attach_that_finds_one_end_taken_leaves_the_other(wire, engine):
    wire.attach(engine)
    with wire.ns.entered():
        redirect.detach(engine, wire.netlink, wire.near)
        with pytest.raises(Exists):
            redirect.attach(engine, wire.netlink, wire.near, wire.guest)
        assert redirect.target_of(engine, wire.netlink, wire.near) is None
        assert redirect.target_of(engine, wire.netlink, wire.guest) == wire.near


def test_missing_link(wire, engine):
    with wire.ns.entered():
        with pytest.raises(NotFound):
            redirect.attach(engine, wire.netlink, 999, wire.guest)
        redirect.detach(engine, wire.netlink, 999)
        redirect.detach(engine, wire.netlink, wire.guest)
        with pytest.raises(CheckFailed):
            redirect.check(engine, wire.netlink, 999, wire.guest)
    assert wire.blocked()


def test_check_sees_one_direction_missing_and_a_wrong_target(wire, engine):
    wire.attach(engine)
    with wire.ns.entered(), pytest.raises(CheckFailed, match="expected 1, found"):
        redirect.check(engine, wire.netlink, wire.near, 1)
    with wire.ns.entered():
        redirect.detach(engine, wire.netlink, wire.guest)
    with pytest.raises(CheckFailed, match=f"from link {wire.guest} to link {wire.near} is gone"):
        wire.check(engine)


def test_redirect_goes_with_its_link(wire, engine):
    wire.attach(engine)
    wire.netlink.batch(rtnl_encode.del_link(wire.guest))
    with pytest.raises(CheckFailed):
        wire.check(engine)
    wire.detach(engine)


# others on the same link


def foreign_program():
    """Passes everything on to the next (TCX_NEXT, TC_ACT_UNSPEC: -1)."""
    return bpf.load("somebody_else", (*bpf.MOV_R0, 0, bpf.TC_ACT_UNSPEC), (*bpf.EXIT, 0, 0))


@pytest.fixture
def foreign():
    fd = foreign_program()
    yield fd
    os.close(fd)


@pytest.mark.parametrize("first", [True, False])
def test_foreign_tcx_program_survives(wire, foreign, first):
    if reason := redirect.supported()["tcx"]:
        pytest.skip(reason)
    if not first:
        wire.attach("tcx")
    with wire.ns.entered():
        bpf.attach_tcx(foreign, wire.near)
    if first:
        wire.attach("tcx")
    assert wire.passes() == [0, 0]
    with wire.ns.entered():
        assert len(bpf.tcx_programs(wire.near)) == 2
        assert bpf.tcx_attached(wire.near).target == wire.guest
        assert bpf.detach_tcx(wire.near)
        assert bpf.tcx_programs(wire.near) == [bpf.program(foreign).id]
        assert not bpf.detach_tcx(wire.near)


@pytest.fixture(params=["cls_bpf", "mirred"])
def filter_engine(request):
    if reason := redirect.supported()[request.param]:
        pytest.skip(reason)
    return request.param


@pytest.mark.parametrize("ingress", [True, False])
def test_foreign_filter_survives(wire, foreign, filter_engine, ingress):
    wire.attach(filter_engine)
    wire.netlink.batch(
        tc_encode.add_bpf_filter(wire.near, foreign, "else", ingress=ingress, priority=1, handle=1)
    )
    assert wire.passes() == [0, 0]
    wire.detach(filter_engine)
    assert wire.clsact(wire.near)
    [left] = wire.netlink.filters(wire.near, ingress=ingress)
    assert (left.name, left.priority, left.handle) == ("else", 1, 1)
    assert not wire.clsact(wire.guest)


def test_foreign_qdisc_survives_even_when_empty(wire, filter_engine):
    wire.netlink.batch(tc_encode.add_clsact(wire.near))
    wire.attach(filter_engine)
    assert wire.passes() == [0, 0]
    wire.detach(filter_engine)
    assert wire.clsact(wire.near)
    assert not wire.clsact(wire.guest)
    assert wire.blocked()


def test_filter_of_our_priority_by_somebody_else_survives(wire, foreign, filter_engine):
    wire.netlink.batch(
        tc_encode.add_clsact(wire.near),
        tc_encode.add_bpf_filter(
            wire.near, foreign, "else", priority=redirect.PRIORITY, handle=0x10
        ),
    )
    wire.detach(filter_engine)
    assert [x.name for x in wire.netlink.filters(wire.near)] == ["else"]


# what works here


def test_choose_takes_the_first_that_works(monkeypatch):
    works = [name for name, reason in redirect.supported().items() if not reason]
    assert redirect.choose("auto") == works[0]
    assert [redirect.choose(name) for name in works] == works
    monkeypatch.setattr(redirect, "_missing", {"cls_bpf": "no", "tcx": "", "mirred": ""}.get)
    assert redirect.choose("auto") == "tcx"
    monkeypatch.setattr(redirect, "_missing", lambda name: f"no {name}")
    with pytest.raises(NotReady, match="cls_bpf: no cls_bpf; tcx: no tcx; mirred: no mirred"):
        redirect.choose("auto")
    with pytest.raises(NotReady, match="mirred: no mirred"):
        redirect.choose("mirred")


def test_probe_touches_nothing(wire):
    def state():
        with wire.ns.entered():
            return [(i, wire.qdiscs(i), bpf.tcx_programs(i)) for i in (1, wire.near)]

    before, fds = state(), len(os.listdir("/proc/self/fd"))
    for probe in (redirect._missing, redirect._filters_missing, redirect.mirred_kind):
        probe.cache_clear()
    with wire.ns.entered():
        redirect.supported()
    assert state() == before
    assert len(os.listdir("/proc/self/fd")) == fds


def test_a_kernel_without_tcx(monkeypatch):
    class Old:
        """Linux before 6.6: loads the program, does not know the attach type."""

        def syscall(self, number, command, *args):
            if command == bpf.PROG_QUERY:
                ctypes.set_errno(errno.EINVAL)
                return -1
            return libc.syscall(number, command, *args)

    monkeypatch.setattr(bpf, "libc", Old())
    assert "has no tcx" in bpf.tcx_missing()


def test_unknown_machine(monkeypatch):
    monkeypatch.setattr(bpf.platform, "machine", lambda: "pdp11")
    with pytest.raises(NetlinkError, match="pdp11"):
        bpf.load_redirect(1)


def test_load_tells_its_target():
    fd = bpf.load_redirect(1234)
    try:
        found = bpf.program(fd)
        assert (found.name, found.target) == ("vmlink_redir", 1234)
        assert bpf.program_by_id(found.id) == found
    finally:
        os.close(fd)
    assert bpf.program_by_id(found.id) is None


def test_divert_is_one_way_and_once(wire):
    redirect.divert(wire.netlink, wire.near, wire.guest)
    redirect.check_way("cls_bpf", wire.netlink, wire.near, wire.guest)
    assert not wire.clsact(wire.guest)
    with pytest.raises(Exists):
        redirect.divert(wire.netlink, wire.near, wire.guest)
    redirect.detach("cls_bpf", wire.netlink, wire.near)
    assert not wire.clsact(wire.near)


def test_ignore_is_told_from_a_redirect(wire):
    redirect.divert(wire.netlink, wire.near, wire.guest)
    wire.netlink.batch(*redirect.ignore(wire.guest))
    assert redirect.ignores(wire.netlink, wire.guest)
    assert not redirect.ignores(wire.netlink, wire.near)


def test_a_filter_stays_as_long_as_its_namespace_is_held():
    fd = redirect.keep_patched()
    with Namespace.from_fd(fd) as kept, kept.entered(), Netlink() as netlink:
        assert [link.name for link in netlink.links()] == ["lo"]
        assert redirect.ignores(netlink, 1)
