"""Decoders for what an ADD reads: links, qdiscs, filters. Pure.

Layouts: linux/if_link.h, linux/if_tun.h, linux/pkt_sched.h, linux/pkt_cls.h.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from cni.kernel import rtnl_encode
from cni.kernel.netlink_message import attributes
from cni.kernel.rtnl_encode import IFF_UP

_EMPTY: Mapping[int, bytes] = {}


@dataclass(frozen=True)
class TapInfo:
    """The uid and gid that may open a tap (None: not set), and whether it is persistent.

    `queues` counts those that are open, attached or detached; of a tap with a single queue the
    kernel does not count them.
    """

    owner: int | None
    group: int | None
    persistent: bool
    queues: int


@dataclass(frozen=True)
class LinkInfo:
    """A link as the kernel describes it; `mtu` is in bytes, `flags` are those of netdevice(7).

    `master` and `link` are ifindexes or 0: `link` is the other end of a veth, or the link below a
    macvtap or VLAN. It is in the namespace with the id `link_netnsid`, None for the same one.
    `vlan_filtering` is None for all but bridges, `tap` for all but taps.
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
    link_netnsid: int | None
    vlan_filtering: bool | None
    tap: TapInfo | None = None

    @property
    def up(self) -> bool:
        """Whether it is set up, with a carrier or without."""
        return bool(self.flags & IFF_UP)


@dataclass(frozen=True)
class QdiscInfo:
    """A queueing discipline; `rate` is in bytes per second and 0 for all but tbf."""

    kind: str
    handle: int
    parent: int
    rate: int = 0


@dataclass(frozen=True)
class FilterInfo:
    """A filter; `name` and `prog_id` are those of cls_bpf.

    `redirect` is the ifindex to which mirred redirects, 0 for none.
    """

    kind: str
    priority: int
    handle: int
    name: str = ""
    prog_id: int = 0
    redirect: int = 0

    @property
    def is_u32_table(self) -> bool:
        """Whether this is no filter but one of u32's hash tables, which are listed like filters."""
        return self.kind == "u32" and not self.handle & 0xFFF


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw, sys.byteorder) if raw else 0


def _text(raw: bytes | None) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace") if raw else ""


def decode_link(payload: bytes) -> LinkInfo:
    """Decode the payload of RTM_NEWLINK."""
    _, _, index, flags, _ = struct.unpack_from("=BxHiII", payload)
    attrs = attributes(payload, 16)
    info = attributes(attrs.get(rtnl_encode.IFLA_LINKINFO, b""))
    kind = _text(info.get(rtnl_encode.IFLA_INFO_KIND))
    data = (
        attributes(info.get(rtnl_encode.IFLA_INFO_DATA, b""))
        if kind in ("bridge", "tun")
        else _EMPTY
    )
    filtering = None
    if kind == "bridge":
        filtering = data.get(rtnl_encode.IFLA_BR_VLAN_FILTERING) == b"\1"
    netnsid = attrs.get(rtnl_encode.IFLA_LINK_NETNSID)
    # -1 (NETNSA_NSID_NOT_ASSIGNED): the other namespace has no id here, or is about to end.
    known = netnsid is not None and struct.unpack("=i", netnsid)[0] >= 0
    return LinkInfo(
        index=index,
        name=_text(attrs.get(rtnl_encode.IFLA_IFNAME)),
        kind=kind,
        mac=attrs.get(rtnl_encode.IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(attrs.get(rtnl_encode.IFLA_MTU)),
        master=_number(attrs.get(rtnl_encode.IFLA_MASTER)),
        link=_number(attrs.get(rtnl_encode.IFLA_LINK)),
        group=_number(attrs.get(rtnl_encode.IFLA_GROUP)),
        flags=flags,
        link_netnsid=_number(netnsid) if known else None,
        vlan_filtering=filtering,
        tap=_decode_tap(data) if kind == "tun" else None,
    )


def _decode_tap(data: Mapping[int, bytes]) -> TapInfo:
    """Decode IFLA_TUN_*: owner, group, persist, queues and disabled queues."""
    owner, group = (_number(data[n]) if n in data else None for n in (1, 2))
    return TapInfo(owner, group, data.get(6) == b"\1", _number(data.get(8)) + _number(data.get(9)))


def decode_qdisc(payload: bytes) -> QdiscInfo:
    """Decode the payload of RTM_NEWQDISC."""
    _, _, _, handle, parent, _ = struct.unpack_from("=BxHiIII", payload)
    attrs = attributes(payload, 20)
    kind = _text(attrs.get(1))
    tbf = attributes(attrs.get(2, b"")) if kind == "tbf" else _EMPTY
    rate = _number(tbf.get(4)) or _number(tbf.get(1, b"")[8:12])
    return QdiscInfo(kind, handle, parent, rate)


def _mirred_target(actions: bytes) -> int:
    for action in attributes(actions).values():
        attrs = attributes(action)
        parms = attributes(attrs.get(2, b"")).get(2, b"")
        if _text(attrs.get(1)) == "mirred" and len(parms) >= 28:
            return _number(parms[24:28])
    return 0


def decode_filter(payload: bytes) -> FilterInfo:
    """Decode the payload of RTM_NEWTFILTER; the priority is in the upper half of tcm_info."""
    _, _, _, handle, _, info = struct.unpack_from("=BxHiIII", payload)
    attrs = attributes(payload, 20)
    kind = _text(attrs.get(1))
    options = attributes(attrs.get(2, b""))
    bpf = options if kind == "bpf" else _EMPTY
    actions = options.get({"u32": 7, "matchall": 2}.get(kind, -1), b"")
    return FilterInfo(
        kind=kind,
        priority=info >> 16,
        handle=handle,
        name=_text(bpf.get(7)),
        prog_id=_number(bpf.get(11)),
        redirect=_mirred_target(actions),
    )
