"""The encoder for RTM_NEWROUTE. Pure.

Layouts: rtnetlink(7), linux/rtnetlink.h. tests/unit/test_rtnl_encode_addresses.py compares it with
pyroute2's encoding.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Literal

from cni.kernel.netlink_message import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    Message,
    attr,
    u32,
)
from cni.spec.routing import SCOPE_LINK

RTM_NEWROUTE = 24
SCOPE_UNIVERSE = 0
TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST = 254, 4, 1
RTNH_F_ONLINK = 4

Place = Literal["only", "first", "last"]
_PLACES: dict[Place, int] = {"only": NLM_F_EXCL, "first": 0, "last": NLM_F_APPEND}


def add_route(
    dst: str,
    *,
    index: int,
    gateway: str | None = None,
    table: int | None = None,
    priority: int | None = None,
    mtu: int | None = None,
    advmss: int | None = None,
    scope: int | None = None,
    onlink: bool = False,
    place: Place = "only",
    on: str = "",
) -> Message:
    """Add a unicast route that leaves by the link `index`; `mtu` and `advmss` are in bytes.

    The default route is 0.0.0.0/0 or ::/0. With `onlink` the kernel does not ask whether a subnet
    has the gateway. `place` is that among routes with the same destination, table and priority; the
    same route twice is refused by EEXIST in any. `on` is the link's name for the error's text.
    Raises ValueError when `dst` has host bits or the gateway is of the other family.
    """
    net = ipaddress.ip_network(dst)
    family = socket.AF_INET if net.version == 4 else socket.AF_INET6
    where = TABLE_MAIN if table is None else table
    if scope is None:
        scope = SCOPE_LINK if net.version == 4 and not gateway else SCOPE_UNIVERSE
    metrics = (u32(2, mtu) if mtu else b"") + (u32(8, advmss) if advmss else b"")
    small = where if where <= 255 else 0
    head = (family, net.prefixlen, 0, 0, small, RTPROT_STATIC, scope, RTN_UNICAST)
    body = struct.pack("=BBBBBBBBI", *head, RTNH_F_ONLINK if onlink else 0)
    body += _route_attrs(net, gateway, index, where, priority, metrics)
    via = f" via {gateway}" if gateway else ""
    what = f"add route {dst}{via} by {on or f'link {index}'}"
    return Message(RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_CREATE | _PLACES[place], body, what)


def _route_attrs(
    net: ipaddress.IPv4Network | ipaddress.IPv6Network,
    gateway: str | None,
    index: int,
    table: int,
    priority: int | None,
    metrics: bytes,
) -> bytes:
    parts = [attr(1, net.network_address.packed)] if net.prefixlen else []
    parts.append(u32(4, index))
    if gateway:
        address = ipaddress.ip_address(gateway)
        if address.version != net.version:
            raise ValueError(f"route {net} cannot have the gateway {gateway}")
        parts.append(attr(5, address.packed))
    if priority:
        parts.append(u32(6, priority))
    if metrics:
        parts.append(attr(8, metrics))
    if table > 255:
        parts.append(u32(15, table))
    return b"".join(parts)
