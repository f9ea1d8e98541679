"""Encoders for the traffic control messages: clsact, the filters that redirect, tbf. Pure.

Layouts: linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h. tests/unit/test_tc_encode.py
compares each with pyroute2's encoding. An `index` is an ifindex.
"""

from __future__ import annotations

import socket
import struct
from typing import Literal

from cni.kernel.netlink_message import (
    NLM_F_ACK,
    NLM_F_ECHO,
    NLM_F_REQUEST,
    Message,
    attr,
    text,
    u32,
)
from cni.kernel.rtnl_encode import ADD
from cni.kernel.rtnl_queries import LIST

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
CLSACT_HANDLE, CLSACT_PARENT = 0xFFFF0000, 0xFFFFFFF1
ROOT = 0xFFFFFFFF
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
ETH_P_ALL = 0x0003
TCA_KIND, TCA_OPTIONS = 1, 2
TC_ACT_STOLEN, TCA_EGRESS_REDIR = 4, 1
TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST = 1, 4, 6
TC_LINKLAYER_ETHERNET = 1
Kind = Literal["matchall", "u32"]  # the classifiers that can stand before mirred


def tc(index: int, handle: int, parent: int, info: int = 0) -> bytes:
    """Encode the header of a traffic control message, struct tcmsg in linux/rtnetlink.h."""
    return struct.pack("=BxHiIII", 0, 0, index, handle, parent, info)


def add_clsact(index: int) -> Message:
    """Add the clsact qdisc, which carries the filters of ingress and egress."""
    body = tc(index, CLSACT_HANDLE, CLSACT_PARENT) + text(TCA_KIND, "clsact")
    return Message(RTM_NEWQDISC, ADD, body, f"add clsact to link {index}")


def del_clsact(index: int) -> Message:
    """Delete the clsact qdisc with all of its filters."""
    body = tc(index, CLSACT_HANDLE, CLSACT_PARENT) + text(TCA_KIND, "clsact")
    return Message(RTM_DELQDISC, NLM_F_REQUEST, body, f"delete clsact from link {index}")


def _filter(index: int, priority: int, handle: int, ingress: bool, kind: str) -> bytes:
    info = priority << 16 | socket.htons(ETH_P_ALL)
    return tc(index, handle, INGRESS if ingress else EGRESS, info) + text(TCA_KIND, kind)


def add_bpf_filter(
    index: int, prog_fd: int, name: str, *, ingress: bool = True, priority: int, handle: int
) -> Message:
    """Add a cls_bpf filter with direct action; `tc filter show` shows its `name`."""
    body = _filter(index, priority, handle, ingress, "bpf")
    body += attr(TCA_OPTIONS, u32(6, prog_fd) + text(7, name) + u32(8, 1))
    return Message(RTM_NEWTFILTER, ADD, body, f"add bpf filter {name} to link {index}")


def add_mirred_filter(
    index: int, to_index: int, *, kind: Kind, priority: int, handle: int
) -> Message:
    """Add a filter by which all that comes in on `index` leaves by `to_index` instead."""
    parms = struct.pack("=IIiiiiI", 0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to_index)
    action = attr(1, text(1, "mirred") + attr(0x8000 | 2, attr(2, parms)))
    if kind == "matchall":
        options = attr(2, action)
    else:
        # Without a key it matches every frame, also one that is too short for a key. Its flags are
        # TC_U32_TERMINAL.
        options = attr(5, struct.pack("=BBBxHHhhI", 1, 0, 0, 0, 0, 0, 0, 0))
        options = attr(7, action) + options
    body = _filter(index, priority, handle, True, kind) + attr(TCA_OPTIONS, options)
    what = f"redirect link {index} to link {to_index} by {kind}"
    return Message(RTM_NEWTFILTER, ADD, body, what)


def del_filter(index: int, *, kind: str, priority: int, handle: int) -> Message:
    """Delete the one ingress filter with that kind, priority and full handle.

    Raises ValueError for handle 0.
    """
    if handle == 0:
        raise ValueError("handle 0 would delete every filter of the priority")
    body = _filter(index, priority, handle, True, kind)
    what = f"delete {kind} filter {priority}/{handle:#x} from link {index}"
    return Message(RTM_DELTFILTER, NLM_F_REQUEST, body, what)


def add_tbf(index: int, handle: int, *, rate: int, burst: int, limit: int) -> Message:
    """Add a token bucket at the root; the kernel says Exists if somebody has put a qdisc there.

    `rate` is in bytes per second, `burst` and `limit`, the length of its queue, in bytes. The burst
    is sent in bytes (TCA_TBF_BURST, Linux 3.13): in ticks it would be rounded down.
    """
    # With a link layer the kernel needs no rate table.
    ratespec = struct.pack("=BBHhHI", 0, TC_LINKLAYER_ETHERNET, 0, 0, 0, min(rate, 2**32 - 1))
    options = attr(TCA_TBF_PARMS, ratespec + bytes(12) + struct.pack("=III", limit, 0, 0))
    options += attr(TCA_TBF_RATE64, struct.pack("=Q", rate)) + u32(TCA_TBF_BURST, burst)
    body = tc(index, handle, ROOT) + text(TCA_KIND, "tbf") + attr(TCA_OPTIONS, options)
    return Message(RTM_NEWQDISC, ADD, body, f"limit link {index} to {rate * 8} bit/s by tbf")


def del_tbf(index: int, handle: int) -> Message:
    """Delete the token bucket with that handle from the root."""
    body = tc(index, handle, ROOT) + text(TCA_KIND, "tbf")
    return Message(RTM_DELQDISC, NLM_F_REQUEST, body, f"delete tbf from link {index}")


def get_root(index: int) -> Message:
    """Ask for the root qdisc of a link."""
    # The kernel answers with a notification, which comes to the asker only with NLM_F_ECHO. A link
    # without a queue has none; then the acknowledgement alone ends the wait.
    flags = NLM_F_REQUEST | NLM_F_ECHO | NLM_F_ACK
    return Message(RTM_GETQDISC, flags, tc(index, 0, ROOT), f"read the qdisc of link {index}")


def dump_filters(index: int, *, ingress: bool) -> Message:
    """List the filters of one side of a link's clsact qdisc."""
    body = tc(index, 0, INGRESS if ingress else EGRESS)
    return Message(RTM_GETTFILTER, LIST, body, f"list filters of link {index}")
