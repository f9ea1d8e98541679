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
    """A unicast route; `gw` is "" and `oif`, the ifindex that it leaves by, 0 where it has none.

    `mtu` and `advmss` are in bytes and 0 where the route has none of its own. Of a route with
    several next hops each is a route.
    """

    dst: str
    gw: str
    oif: int
    table: int
    protocol: int
    scope: int = 0
    priority: int = 0
    mtu: int = 0
    advmss: int = 0


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


def decode_routes(payload: bytes) -> list[RouteInfo]:
    """The unicast routes of an RTM_NEWROUTE (struct rtmsg in linux/rtnetlink.h), none of any other.

    Cached routes are none.
    """
    message = _decoded("rtmsg", payload)
    if message["type"] != _RTN_UNICAST or message["flags"] & _RTM_F_CLONED:
        return []
    everything = "0.0.0.0" if message["family"] == socket.AF_INET else "::"
    metrics = message.get_attr("RTA_METRICS")
    return [
        RouteInfo(
            dst=f"{message.get('dst') or everything}/{message['dst_len']}",
            gw=hop.get_attr("RTA_GATEWAY") or "",
            oif=hop.get_attr("RTA_OIF") or hop.get("oif") or 0,
            table=message.get_attr("RTA_TABLE") or message["table"],
            protocol=message["proto"],
            scope=message["scope"],
            priority=message.get_attr("RTA_PRIORITY") or 0,
            mtu=(metrics and metrics.get_attr("RTAX_MTU")) or 0,
            advmss=(metrics and metrics.get_attr("RTAX_ADVMSS")) or 0,
        )
        for hop in message.get_attr("RTA_MULTIPATH") or [message]
    ]


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
