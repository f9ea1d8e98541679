"""Redirects that frames really take, by each engine; and what others attached stays theirs.

The wire: (outside) far -- near (pod) <=redirect=> guest (pod) -- vm (outside)
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from cni.errors import CheckFailed, NotReady
from cni.kernel import bpf, redirect, rtnl_encode, tc_encode
from cni.kernel.netlink import Exists, Netlink, NetlinkError, NotFound
from cni.kernel.netns import Namespace, libc
from tests.netns.nslib import (
    namespaces,
    open_descriptors,
    present,
)
from tests.netns.redirectwire import Wire

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

BROADCAST = b"\xff" * 6
SOURCE = bytes.fromhex("020000000001")


@pytest.fixture
def wire() -> Iterator[Wire]:
    with namespaces(2) as [pod, outside]:
        yield Wire(pod, outside)


@pytest.fixture(params=redirect.ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if reason := redirect.supported()[name]:
        pytest.skip(reason)
    return name


def tcx_programs(ifindex: int) -> list[int]:
    """The programs of a link; none before Linux 6.6."""
    return [] if redirect.supported()["tcx"] else bpf.tcx_programs(ifindex)


def test_frames_cross_both_ways_and_detach_restores(wire: Wire, engine: str) -> None:
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


def test_vlan_tags_cross(wire: Wire, engine: str) -> None:
    wire.attach(engine)
    assert wire.passes(tag=42) == [42, 42]


def test_attached_once(wire: Wire, engine: str) -> None:
    wire.attach(engine)
    with pytest.raises(Exists):
        wire.attach(engine)
    assert wire.passes() == [0, 0]
    wire.detach(engine)
    assert wire.blocked()
    assert not wire.clsact(wire.near)


@pytest.mark.parametrize("first", ["near", "guest"])
def test_a_failed_attach_leaves_nothing(wire: Wire, engine: str, first: str) -> None:
    index = getattr(wire, first)
    pair = (index, 999) if first == "near" else (999, index)
    with wire.ns.entered():
        with pytest.raises(NotFound):
            redirect.attach(engine, wire.netlink, *pair)
        assert tcx_programs(index) == []
    assert not wire.clsact(index)


def test_an_attach_that_finds_one_end_taken_leaves_the_other(wire: Wire, engine: str) -> None:
    wire.attach(engine)
    with wire.ns.entered():
        redirect.detach(engine, wire.netlink, wire.near)
        with pytest.raises(Exists):
            redirect.attach(engine, wire.netlink, wire.near, wire.guest)
        assert redirect.target_of(engine, wire.netlink, wire.near) is None
        assert redirect.target_of(engine, wire.netlink, wire.guest) == wire.near


def test_missing_link(wire: Wire, engine: str) -> None:
    with wire.ns.entered():
        with pytest.raises(NotFound):
            redirect.attach(engine, wire.netlink, 999, wire.guest)
        redirect.detach(engine, wire.netlink, 999)
        redirect.detach(engine, wire.netlink, wire.guest)
        with pytest.raises(CheckFailed):
            redirect.check(engine, wire.netlink, 999, wire.guest)
    assert wire.blocked()


def test_check_sees_one_direction_missing_and_a_wrong_target(wire: Wire, engine: str) -> None:
    wire.attach(engine)
    with wire.ns.entered(), pytest.raises(CheckFailed, match="expected 1, found"):
        redirect.check(engine, wire.netlink, wire.near, 1)
    with wire.ns.entered():
        redirect.detach(engine, wire.netlink, wire.guest)
    with pytest.raises(CheckFailed, match=f"from link {wire.guest} to link {wire.near} is gone"):
        wire.check(engine)


def test_redirect_goes_with_its_link(wire: Wire, engine: str) -> None:
    wire.attach(engine)
    wire.netlink.batch(rtnl_encode.del_link(wire.guest))
    with pytest.raises(CheckFailed):
        wire.check(engine)
    wire.detach(engine)


# others on the same link


def foreign_program() -> int:
    """Passes everything on to the next (TCX_NEXT, TC_ACT_UNSPEC: -1)."""
    return bpf.load("somebody_else", (*bpf.MOV_R0, 0, bpf.TC_ACT_UNSPEC), (*bpf.EXIT, 0, 0))


@pytest.fixture
def foreign() -> Iterator[int]:
    fd = foreign_program()
    yield fd
    os.close(fd)


@pytest.mark.parametrize("first", [True, False])
def test_foreign_tcx_program_survives(wire: Wire, foreign: int, first: bool) -> None:
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
        assert present(bpf.tcx_attached(wire.near)).target == wire.guest
        assert bpf.detach_tcx(wire.near)
        assert bpf.tcx_programs(wire.near) == [bpf.program(foreign).id]
        assert not bpf.detach_tcx(wire.near)


@pytest.fixture(params=["cls_bpf", "mirred"])
def filter_engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if reason := redirect.supported()[name]:
        pytest.skip(reason)
    return name


@pytest.mark.parametrize("ingress", [True, False])
def test_foreign_filter_survives(
    wire: Wire, foreign: int, filter_engine: str, ingress: bool
) -> None:
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


def test_foreign_qdisc_survives_even_when_empty(wire: Wire, filter_engine: str) -> None:
    wire.netlink.batch(tc_encode.add_clsact(wire.near))
    wire.attach(filter_engine)
    assert wire.passes() == [0, 0]
    wire.detach(filter_engine)
    assert wire.clsact(wire.near)
    assert not wire.clsact(wire.guest)
    assert wire.blocked()


def test_filter_of_our_priority_by_somebody_else_survives(
    wire: Wire, foreign: int, filter_engine: str
) -> None:
    wire.netlink.batch(
        tc_encode.add_clsact(wire.near),
        tc_encode.add_bpf_filter(
            wire.near, foreign, "else", priority=redirect.PRIORITY, handle=0x10
        ),
    )
    wire.detach(filter_engine)
    assert [x.name for x in wire.netlink.filters(wire.near)] == ["else"]


# what works here


def test_choose_takes_the_first_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    works = [name for name, reason in redirect.supported().items() if not reason]
    assert redirect.choose("auto") == works[0]
    assert [redirect.choose(name) for name in works] == works
    monkeypatch.setattr(redirect, "_missing", cache({"cls_bpf": "no", "tcx": "", "mirred": ""}.get))
    assert redirect.choose("auto") == "tcx"
    monkeypatch.setattr(redirect, "_missing", cache(lambda name: f"no {name}"))
    with pytest.raises(NotReady, match="cls_bpf: no cls_bpf; tcx: no tcx; mirred: no mirred"):
        redirect.choose("auto")
    with pytest.raises(NotReady, match="mirred: no mirred"):
        redirect.choose("mirred")


def test_probe_touches_nothing(wire: Wire) -> None:
    def state() -> list[tuple[int, list[dict[str, Any]], list[int]]]:
        with wire.ns.entered():
            return [(i, wire.qdiscs(i), tcx_programs(i)) for i in (1, wire.near)]

    before, fds = state(), open_descriptors()
    for probe in (redirect._missing, redirect._filters_missing, redirect.mirred_kind):
        probe.cache_clear()
    with wire.ns.entered():
        redirect.supported()
    assert state() == before
    assert open_descriptors() == fds


@pytest.fixture
def no_tcx(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Linux before 6.6: it loads the program, and knows neither the attach type nor the query."""

    class Old:
        def syscall(self, number: int, command: int, *args: object) -> int:
            if command in (bpf.PROG_QUERY, bpf.PROG_ATTACH, bpf.PROG_DETACH):
                ctypes.set_errno(errno.EINVAL)
                return -1
            result: int = libc.syscall(number, command, *args)
            return result

    monkeypatch.setattr(bpf, "libc", Old())
    redirect._missing.cache_clear()
    yield
    redirect._missing.cache_clear()


@pytest.mark.usefixtures("no_tcx")
def test_a_kernel_without_tcx(wire: Wire) -> None:
    assert "has no tcx" in redirect.supported()["tcx"]
    with wire.ns.entered():
        assert redirect.target_of("tcx", wire.netlink, wire.near) is None
        redirect.detach("tcx", wire.netlink, wire.near)
        with pytest.raises(CheckFailed, match=r"the tcx redirect .* is gone"):
            redirect.check_way("tcx", wire.netlink, wire.near, wire.guest)


def test_unknown_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    with pytest.raises(NetlinkError, match="pdp11"):
        bpf.load_redirect(1)


def test_load_tells_its_target() -> None:
    fd = bpf.load_redirect(1234)
    try:
        found = bpf.program(fd)
        assert (found.name, found.target) == ("vmlink_redir", 1234)
        assert bpf.program_by_id(found.id) == found
    finally:
        os.close(fd)
    assert bpf.program_by_id(found.id) is None


def test_divert_is_one_way_and_once(wire: Wire) -> None:
    redirect.divert(wire.netlink, wire.near, wire.guest)
    redirect.check_way("cls_bpf", wire.netlink, wire.near, wire.guest)
    assert not wire.clsact(wire.guest)
    with pytest.raises(Exists):
        redirect.divert(wire.netlink, wire.near, wire.guest)
    redirect.detach("cls_bpf", wire.netlink, wire.near)
    assert not wire.clsact(wire.near)


def test_ignore_is_told_from_a_redirect(wire: Wire) -> None:
    redirect.divert(wire.netlink, wire.near, wire.guest)
    wire.netlink.batch(*redirect.ignore(wire.guest))
    assert redirect.ignores(wire.netlink, wire.guest)
    assert not redirect.ignores(wire.netlink, wire.near)


def test_a_filter_stays_as_long_as_its_namespace_is_held() -> None:
    fd = redirect.keep_patched()
    with Namespace.from_fd(fd) as kept, kept.entered(), Netlink() as netlink:
        assert [link.name for link in netlink.links()] == ["lo"]
        assert redirect.ignores(netlink, 1)
