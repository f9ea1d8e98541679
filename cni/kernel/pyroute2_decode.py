"""Addresses, routes and neighbours, decoded by pyroute2. The only file that imports it.

They are read by CHECK, by vmlink-hook and by a step's check, not by ADD, and their messages have
more forms than those that vmlink makes itself.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from cni.kernel.netlink_message import with_header

_RTN_UNICAST, _RTM_F_CLONED = 1, 0x200
_NUD_NOARP = 0x40


@dataclass(frozen=True)
class RouteInfo:
    """A unicast route; `gw` is "" and `oif`, the ifindex that it leaves by, 0 where it has none."""

    dst: str
    gw: str
    oif: int
    table: int
    protocol: int


@dataclass(frozen=True)
class NeighbourInfo:
    """An entry of the neighbour table; `state` is one of NUD_* in linux/neighbour.h."""

    ip: str
    mac: str
    state: int


def decode_address(payload: bytes) -> str:
    """ADDRESS/PREFIX of an RTM_NEWADDR (struct ifaddrmsg in linux/if_addr.h)."""
    message = _decoded("ifaddrmsg", payload)
    return f"{message.get('local') or message.get('address')}/{message['prefixlen']}"


def decode_route(payload: bytes) -> RouteInfo | None:
    """The unicast route of an RTM_NEWROUTE, None for any other (struct rtmsg, linux/rtnetlink.h).

    Cached routes are none.
    """
    message = _decoded("rtmsg", payload)
    if message["type"] != _RTN_UNICAST or message["flags"] & _RTM_F_CLONED:
        return None
    everything = "0.0.0.0" if message["family"] == socket.AF_INET else "::"
    return RouteInfo(
        dst=f"{message.get('dst') or everything}/{message['dst_len']}",
        gw=message.get("gateway") or "",
        oif=message.get("oif") or 0,
        table=message.get_attr("RTA_TABLE") or message["table"],
        protocol=message["proto"],
    )


def decode_neighbour(payload: bytes) -> tuple[int, NeighbourInfo] | None:
    """The ifindex and the entry of an RTM_NEWNEIGH (struct ndmsg in linux/neighbour.h).

    None for NOARP entries: the kernel makes them itself for addresses that need no resolution, such
    as multicast.
    """
    message = _decoded("ndmsg", payload)
    if message["state"] == _NUD_NOARP:
        return None
    entry = NeighbourInfo(message.get("dst") or "", message.get("lladdr") or "", message["state"])
    return message["ifindex"], entry


def _decoded(name: str, payload: bytes) -> Any:
    message = _message_class(name)(with_header(payload))
    message.decode()
    return message


@cache
def _message_class(name: str) -> Any:
    # Importing pyroute2 takes 130 ms, which programs that read none of these should not pay.
    return getattr(import_module(f"pyroute2.netlink.rtnl.{name}"), name)
