"""Redirects: what comes in on one link leaves by another, by one of three engines.

cls_bpf  a program of four instructions as a filter of a clsact qdisc
tcx      the same program on the link itself (Linux 6.6), beside the tcx programs of others
mirred   the redirect action of a clsact filter: matchall, or u32 where there is no matchall

cls_bpf is the first choice: with tcx the kernel waits for an RCU grace period (tcx_entry_sync,
about 11 ms) at each attach, each detach and each end of a link with a program, and holds the RTNL
lock. Connecting two links took 22 ms with tcx and 0.5 ms with cls_bpf, deleting them 22 and 1.4 ms.

For tcx the calling thread must be in the namespace of the links; `netlink` is of that namespace.
Sources: tc-bpf(8), tc-mirred(8), Documentation/bpf/libbpf/program_types.rst (tcx).
"""

from __future__ import annotations

import errno as errnos
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial

from cni.errors import CheckFailed, NotReady
from cni.kernel import bpf, tc_encode
from cni.kernel.netlink import Exists, Netlink, NetlinkError, NotFound, refused
from cni.kernel.netlink_message import Message
from cni.kernel.rtnl_decode import FilterInfo
from cni.kernel.scratch import in_scratch_namespace
from cni.kernel.tc_encode import Kind

ENGINES = ("cls_bpf", "tcx", "mirred")

# After filters whose priority somebody chose: people begin with 1. Where nobody does, the kernel
# takes 49152 for the first filter, and one less than the first has for another.
PRIORITY = 0xB0F0
# The handle of our filter says whether the clsact is ours or was there before, so that a later
# detach, perhaps by another process, deletes only a clsact of ours.
IN_OUR_QDISC, IN_THEIR_QDISC = 0x761, 0x762
KINDS: dict[str, tuple[str, ...]] = {"cls_bpf": ("bpf",), "mirred": ("matchall", "u32")}
Filter = Callable[[int], Message]  # makes the request for a filter with this handle


def choose(engine: str = "auto") -> str:
    """The engine to use: the configured one or, with "auto", the first that works.

    Raises NotReady, with the reason of each engine that does not work.
    """
    names = ENGINES if engine == "auto" else (engine,)
    for name in names:
        if not _missing(name):
            return name
    reasons = "; ".join(f"{name}: {_missing(name)}" for name in names)
    for known in (_missing, _filters_missing):  # a module may be loaded meanwhile
        known.cache_clear()
    raise NotReady(f"no redirect engine works on this kernel ({reasons})")


def supported() -> dict[str, str]:
    """Each engine with the reason why it does not work on this kernel, "" if it does."""
    return {name: _missing(name) for name in ENGINES}


@cache
def _missing(engine: str) -> str:
    return bpf.tcx_missing() if engine == "tcx" else _filters_missing()[engine]


@cache
def _filters_missing() -> dict[str, str]:
    return in_scratch_namespace(_try_engines)


@cache
def mirred_kind() -> Kind:
    """The classifier for mirred that this kernel has; u32 if it has no matchall."""
    return "u32" if in_scratch_namespace(_try_matchall) else "matchall"


def attach(engine: str, netlink: Netlink, a_index: int, b_index: int) -> None:
    """Redirect two links to each other: what comes in on either leaves by the other.

    Raises Exists if vmlink redirects one of them already, NotFound if one is missing, NetlinkError;
    nothing is left then.
    """
    if engine == "tcx":
        _attach_tcx(a_index, b_index)
        try:
            _attach_tcx(b_index, a_index)
        except BaseException:
            bpf.detach_tcx(a_index)
            raise
    else:
        _attach_both(engine, netlink, a_index, b_index)


def _attach_tcx(index: int, to: int) -> None:
    if bpf.tcx_attached(index):
        raise _already(index)
    with bpf.redirect_program(to) as fd:
        bpf.attach_tcx(fd, index)


def divert(netlink: Netlink, index: int, to: int) -> None:
    """Redirect a link one way, by cls_bpf: what comes in on `index` comes in on `to` instead.

    `detach` undoes it. Raises Exists if vmlink redirects `index` already, NotFound, NetlinkError;
    nothing is left then.
    """
    fd = bpf.load_redirect(to, into=True)
    try:
        _attach_filters("cls_bpf", netlink, {index: partial(_cls_bpf, index, fd)})
    finally:
        os.close(fd)


def ignore(index: int) -> list[Message]:
    """The requests that keep a namespace's own stack from what comes in on a new link."""
    program = _cls_bpf(index, bpf.ignore_program(), IN_OUR_QDISC, name=bpf.IGNORE)
    return [tc_encode.add_clsact(index), program]


def ignores(netlink: Netlink, index: int) -> bool:
    """Whether the filter of `ignore` is on a link."""
    ours = _ours("cls_bpf", netlink, index)
    return ours is not None and ours.name == bpf.IGNORE


def _attach_both(engine: str, netlink: Netlink, a: int, b: int) -> None:
    with ExitStack() as stack:
        filters: dict[int, Filter] = {}
        for index, to in ((a, b), (b, a)):
            if engine == "mirred":
                filters[index] = partial(_mirred, index, to, mirred_kind())
            else:
                fd = stack.enter_context(bpf.redirect_program(to))
                filters[index] = partial(_cls_bpf, index, fd)
        _attach_filters(engine, netlink, filters)


def _attach_filters(engine: str, netlink: Netlink, filters: dict[int, Filter]) -> None:
    """Add a filter to the ingress of each link, and a clsact where there is none."""
    errors = netlink.attempt(*(tc_encode.add_clsact(index) for index in filters))
    made = [index for index, error in zip(filters, errors, strict=True) if error is None]
    try:
        for index, error in zip(filters, errors, strict=True):
            _accept_clsact(engine, netlink, index, error)
        _add_filters(engine, netlink, filters, made)
    except BaseException:
        netlink.attempt(*(tc_encode.del_clsact(index) for index in made))
        raise


def _accept_clsact(engine: str, netlink: Netlink, index: int, error: NetlinkError | None) -> None:
    """A clsact that was there before is good, unless it has our filter already."""
    if not isinstance(error, Exists):
        if error:
            raise error
    elif _ours(engine, netlink, index):
        raise _already(index)


def _add_filters(
    engine: str, netlink: Netlink, filters: dict[int, Filter], made: list[int]
) -> None:
    errors = netlink.attempt(
        *(
            make(IN_OUR_QDISC if index in made else IN_THEIR_QDISC)
            for index, make in filters.items()
        )
    )
    for error in errors:
        if error:
            for index, other in zip(filters, errors, strict=True):
                if other is None:
                    detach(engine, netlink, index)
            raise error


def _already(index: int) -> NetlinkError:
    return refused(errnos.EEXIST, f"attach the redirect to link {index}")


def _cls_bpf(
    index: int, fd: int, handle: int, priority: int = PRIORITY, name: str = bpf.NAME
) -> Message:
    return tc_encode.add_bpf_filter(index, fd, name, priority=priority, handle=handle)


def _mirred(index: int, to: int, kind: Kind, handle: int) -> Message:
    return tc_encode.add_mirred_filter(index, to, kind=kind, priority=PRIORITY, handle=handle)


def _ours(engine: str, netlink: Netlink, index: int) -> FilterInfo | None:
    for each in netlink.filters(index):
        # u32 has the number of its hash table in the upper bits.
        low = each.handle & 0xFFF if each.kind == "u32" else each.handle
        known = low in (IN_OUR_QDISC, IN_THEIR_QDISC)
        if each.kind in KINDS[engine] and each.priority == PRIORITY and known:
            return each
    return None


def detach(engine: str, netlink: Netlink, index: int) -> None:
    """Take our redirect off a link, and the clsact if it is ours and nobody else uses it.

    No redirect or no link is success. Raises NetlinkError.
    """
    if engine == "tcx":
        if not _missing("tcx"):
            bpf.detach_tcx(index)
        return
    ours = _ours(engine, netlink, index)
    if ours is None:
        return
    message = tc_encode.del_filter(index, kind=ours.kind, priority=PRIORITY, handle=ours.handle)
    removed = [message]
    if ours.handle & 0xFFF == IN_OUR_QDISC and _alone(netlink, index):
        removed.append(tc_encode.del_clsact(index))
    for error in netlink.attempt(*removed):
        if error and not isinstance(error, NotFound):
            raise error


def _alone(netlink: Netlink, index: int) -> bool:
    return len(netlink.filters(index)) == 1 and not netlink.filters(index, ingress=False)


def check(engine: str, netlink: Netlink, a_index: int, b_index: int) -> None:
    """Check both directions of `attach`. Raises CheckFailed, NetlinkError."""
    check_way(engine, netlink, a_index, b_index)
    check_way(engine, netlink, b_index, a_index)


def check_way(engine: str, netlink: Netlink, index: int, to: int) -> None:
    """Check that a link is redirected to `to`. Raises CheckFailed, NetlinkError."""
    target = target_of(engine, netlink, index)
    if target is None:
        raise CheckFailed(f"the {engine} redirect from link {index} to link {to} is gone")
    if target not in (0, to):
        raise CheckFailed(f"the {engine} redirect of link {index}: expected {to}, found {target}")


def target_of(engine: str, netlink: Netlink, index: int) -> int | None:
    """The ifindex to which vmlink redirects a link; 0 if the kernel hides it, None for none."""
    if engine == "tcx":
        if _missing("tcx"):  # where there is none, the kernel refuses to list its programs
            return None
        try:
            program = bpf.tcx_attached(index)
        except NotFound:
            return None
        return program.target if program else None
    ours = _ours(engine, netlink, index)
    if ours is None:
        return None
    if engine == "mirred":
        return ours.redirect
    loaded = bpf.program_by_id(ours.prog_id)
    return loaded.target if loaded else None


def keep_patched() -> int:
    """Keep one filter in a namespace of its own; returns the descriptor that holds it.

    The kernel patches its code when the machine gets its first clsact and its first filter, and
    back when the last one goes (ingress_needed_key and others in net/core/dev.c). Without this, an
    ADD and a DEL that are alone on their node pay 0.3 ms each for it. Raises KernelRefused.
    """

    def hold(netlink: Netlink) -> int:
        if not _filters_missing()["cls_bpf"]:
            filter_ = _cls_bpf(1, bpf.ignore_program(), IN_OUR_QDISC, name=bpf.IGNORE)
            netlink.attempt(tc_encode.add_clsact(1), filter_)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return in_scratch_namespace(hold)


def _try_matchall(netlink: Netlink) -> str:
    netlink.batch(tc_encode.add_clsact(1))
    return _why(netlink, _mirred(1, 1, "matchall", IN_OUR_QDISC))


def _try_engines(netlink: Netlink) -> dict[str, str]:
    if reason := _why(netlink, tc_encode.add_clsact(1)):
        return dict.fromkeys(KINDS, reason)
    try:
        fd = bpf.load_redirect(1)
    except NetlinkError as error:
        by_bpf = error.msg
    else:
        # All filters of a priority are of one kind, and mirred is tried with ours below.
        by_bpf = _why(netlink, _cls_bpf(1, fd, IN_OUR_QDISC, PRIORITY - 1))
        os.close(fd)
    return {"cls_bpf": by_bpf, "mirred": _why(netlink, _mirred(1, 1, mirred_kind(), IN_OUR_QDISC))}


def _why(netlink: Netlink, message: Message) -> str:
    error = netlink.attempt(message)[0]
    return error.msg if error else ""
