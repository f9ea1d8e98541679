"""Where the guard hangs: at tc ingress or egress of a link, before every other filter of ours.

Source: net/sched/cls_bpf.c: a program that returns TC_ACT_UNSPEC passes on to the next filter.
"""

from __future__ import annotations

from cni.kernel import bpf, redirect, tc_encode
from cni.kernel.guard.program import NAME
from cni.kernel.netlink import Exists, Netlink, NotFound

PRIORITY, HANDLE = redirect.PRIORITY - 1, 0x761


def attach(netlink: Netlink, index: int, fd: int, *, egress: bool) -> None:
    """Attach the program by cls_bpf, in a clsact that is made where there is none.

    It goes with the link. Raises NetlinkError.
    """
    program = tc_encode.add_bpf_filter(
        index, fd, NAME, ingress=not egress, priority=PRIORITY, handle=HANDLE
    )
    made, attached = netlink.attempt(tc_encode.add_clsact(index), program)
    for error in (None if isinstance(made, Exists) else made, attached):
        if error:
            raise error


def attached(netlink: Netlink, index: int, *, egress: bool) -> int:
    """Return the id of the program that cls_bpf has on a link, 0 for none. Raises NetlinkError."""
    for each in netlink.filters(index, ingress=not egress):
        if (each.kind, each.priority, each.handle) == ("bpf", PRIORITY, HANDLE):
            return each.prog_id
    return 0


def attached_tcx(index: int) -> int:
    """Return the id of the program that tcx has on a link's ingress, 0 for none.

    The calling thread must be in the link's namespace. Raises NetlinkError.
    """
    try:
        program = bpf.tcx_attached(index, NAME)
    except NotFound:
        return 0
    return program.id if program else 0
