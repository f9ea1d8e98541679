"""Encoders for the rtnetlink requests that read: one link, or a list. Pure.

Layouts: rtnetlink(7), linux/rtnetlink.h. An `index` is an ifindex.
"""

from __future__ import annotations

import struct

from cni.kernel.netlink_message import NLM_F_DUMP, NLM_F_REQUEST, Message, text, u32
from cni.kernel.rtnl_encode import IFLA_IFNAME, ifinfo

LIST = NLM_F_REQUEST | NLM_F_DUMP
RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH = 18, 22, 26, 30
IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS = 29, 1 << 3
RTA_OIF, NDA_IFINDEX = 4, 8


def get_link(*, name: str | None = None, index: int | None = None) -> Message:
    """Ask for one link, without its statistics, which are half of the answer."""
    body = ifinfo(index or 0)
    if name is not None:
        body += text(IFLA_IFNAME, name)
    body += u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    return Message(RTM_GETLINK, NLM_F_REQUEST, body, f"read link {name or index}")


def dump_links() -> Message:
    """List all links, without their statistics."""
    body = ifinfo() + u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    return Message(RTM_GETLINK, LIST, body, "list links")


def dump_addresses(index: int) -> Message:
    """List the addresses of a link; older kernels list those of all links."""
    body = struct.pack("=BBBBi", 0, 0, 0, 0, index)
    return Message(RTM_GETADDR, LIST, body, f"list addresses of link {index}")


def dump_routes(family: int, index: int | None = None) -> Message:
    """List the routes of all tables, or those that leave by the link `index`."""
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0)
    return Message(
        RTM_GETROUTE, LIST, body + (u32(RTA_OIF, index) if index else b""), "list routes"
    )


def dump_neighbours(index: int) -> Message:
    """List the neighbours of a link."""
    body = struct.pack("=BxHiHBB", 0, 0, 0, 0, 0, 0) + u32(NDA_IFINDEX, index)
    return Message(RTM_GETNEIGH, LIST, body, f"list neighbours of link {index}")
