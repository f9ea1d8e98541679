"""Decoders for what is read often: one link, the qdiscs and filters of a link. Pure.

Layouts: linux/if_link.h, linux/pkt_sched.h, linux/pkt_cls.h.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from cni.kernel import rtnl_encode
from cni.kernel.rtnl_encode import IFF_PROMISC, IFF_UP

HEADER = struct.Struct("=HH")
IFF_LOWER_UP = 0x10000
NONE: Mapping[int, bytes] = {}


@dataclass(frozen=True)
class TapInfo:
    """Who may open it (None: not told), whether it stays, and how many queues somebody has,
    whether they are attached or not."""

    owner: int | None
    group: int | None
    persistent: bool
    queues: int


@dataclass(frozen=True)
class LinkInfo:
    """`mtu` in bytes; `master` and `link` are ifindexes or 0.

    `link` is the far end of a veth, or the lower link of a macvtap or VLAN; `link_netnsid` tells
    in which namespace, None: in the same one. `vlan_filtering` and `tap` are None where they have
    no meaning.
    """

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    master: int
    link: int
    group: int
    flags: int
    alias: str
    link_netnsid: int | None
    vlan_filtering: bool | None
    tap: TapInfo | None = None

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP)

    @property
    def carrier(self) -> bool:
        return bool(self.flags & IFF_LOWER_UP)

    @property
    def promisc(self) -> bool:
        return bool(self.flags & IFF_PROMISC)


@dataclass(frozen=True)
class QdiscInfo:
    """`rate`, in bytes per second, only of tbf."""

    kind: str
    handle: int
    parent: int
    rate: int = 0


@dataclass(frozen=True)
class FilterInfo:
    """One filter; `prog_id` and `name` only of cls_bpf, `redirect` (ifindex) only of mirred."""

    kind: str
    priority: int
    protocol: int
    handle: int
    name: str = ""
    prog_id: int = 0
    redirect: int = 0


def attributes(data: bytes, start: int = 0) -> dict[int, bytes]:
    """Type -> payload, without the flags for nested and network byte order."""
    found = {}
    end = len(data)
    while start + 4 <= end:
        length, kind = HEADER.unpack_from(data, start)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[start + 4 : start + length]
        start += (length + 3) & ~3
    return found


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw, sys.byteorder) if raw else 0


def _text(raw: bytes | None) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace") if raw else ""


def decode_link(payload: bytes) -> LinkInfo:
    """From the payload of RTM_NEWLINK or RTM_DELLINK."""
    _, _, index, flags, _ = struct.unpack_from("=BxHiII", payload)
    found = attributes(payload, 16)
    info = attributes(found.get(rtnl_encode.IFLA_LINKINFO, b""))
    kind = _text(info.get(rtnl_encode.IFLA_INFO_KIND))
    data = (
        attributes(info.get(rtnl_encode.IFLA_INFO_DATA, b"")) if kind in ("bridge", "tun") else NONE
    )
    filtering = None
    if kind == "bridge":
        filtering = data.get(rtnl_encode.IFLA_BR_VLAN_FILTERING) == b"\1"
    netnsid = found.get(rtnl_encode.IFLA_LINK_NETNSID)
    # -1: the other namespace has no id here, or is about to end (NETNSA_NSID_NOT_ASSIGNED).
    known = netnsid is not None and struct.unpack("=i", netnsid)[0] >= 0
    return LinkInfo(
        index=index,
        name=_text(found.get(rtnl_encode.IFLA_IFNAME)),
        kind=kind,
        mac=found.get(rtnl_encode.IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(found.get(rtnl_encode.IFLA_MTU)),
        master=_number(found.get(rtnl_encode.IFLA_MASTER)),
        link=_number(found.get(rtnl_encode.IFLA_LINK)),
        group=_number(found.get(rtnl_encode.IFLA_GROUP)),
        flags=flags,
        alias=_text(found.get(rtnl_encode.IFLA_IFALIAS)),
        link_netnsid=_number(netnsid) if known else None,
        vlan_filtering=filtering,
        tap=_decode_tap(data) if kind == "tun" else None,
    )


def _decode_tap(data: Mapping[int, bytes]) -> TapInfo:
    owner, group = (_number(data[n]) if n in data else None for n in (1, 2))
    return TapInfo(owner, group, data.get(6) == b"\1", _number(data.get(8)) + _number(data.get(9)))


def decode_qdisc(payload: bytes) -> QdiscInfo:
    _, _, _, handle, parent, _ = struct.unpack_from("=BxHiIII", payload)
    found = attributes(payload, 20)
    kind = _text(found.get(1))
    tbf = attributes(found.get(2, b"")) if kind == "tbf" else NONE
    rate = _number(tbf.get(4)) or _number(tbf.get(1, b"")[8:12])
    return QdiscInfo(kind, handle, parent, rate)


def _mirred_target(actions: bytes) -> int:
    for action in attributes(actions).values():
        found = attributes(action)
        parms = attributes(found.get(2, b"")).get(2, b"")
        if _text(found.get(1)) == "mirred" and len(parms) >= 28:
            return _number(parms[24:28])
    return 0


def decode_filter(payload: bytes) -> FilterInfo:
    _, _, _, handle, _, info = struct.unpack_from("=BxHiIII", payload)
    found = attributes(payload, 20)
    kind = _text(found.get(1))
    options = attributes(found.get(2, b""))
    bpf = options if kind == "bpf" else NONE
    actions = options.get({"u32": 7, "matchall": 2}.get(kind, -1), b"")
    return FilterInfo(
        kind=kind,
        priority=info >> 16,
        protocol=socket.ntohs(info & 0xFFFF),
        handle=handle,
        name=_text(bpf.get(7)),
        prog_id=_number(bpf.get(11)),
        redirect=_mirred_target(actions),
    )
