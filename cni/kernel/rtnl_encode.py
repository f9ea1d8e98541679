"""Encoders for the rtnetlink messages of the hot path; pure, nothing here opens a socket.

Layouts: rtnetlink(7), linux/rtnetlink.h, linux/if_link.h, linux/pkt_sched.h, linux/pkt_cls.h.
tests/unit/test_rtmsg.py compares every one with pyroute2's encoding.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Literal, NamedTuple

NLM_F_REQUEST, NLM_F_ACK, NLM_F_ECHO = 0x1, 0x4, 0x8
NLM_F_DUMP = 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
ADD = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_GETNEIGH = 28, 30
NUD_PERMANENT = 0x80

IFF_UP, IFF_PROMISC, IFF_ALLMULTI = 0x1, 0x100, 0x200
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_GROUP = 18, 20, 26, 27
IFLA_NET_NS_FD, IFLA_EXT_MASK, IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 28, 29, 31, 32
IFLA_LINK_NETNSID, IFLA_TARGET_NETNSID = 37, 46
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_BR_VLAN_FILTERING = 1, 2, 7
RTEXT_FILTER_SKIP_STATS = 1 << 3

AF_BRIDGE = 7
BRIDGE_FLAGS_SELF = 2
VLAN_PVID, VLAN_UNTAGGED, VLAN_RANGE_BEGIN, VLAN_RANGE_END = 0x2, 0x4, 0x8, 0x10

SCOPE_UNIVERSE, SCOPE_LINK = 0, 253
TABLE_MAIN = 254
RTPROT_STATIC = 4

Kind = Literal["matchall", "u32"]
MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}


class Message(NamedTuple):
    """A request without its nlmsghdr; `what` completes "cannot ..." in an error."""

    type: int
    flags: int
    body: bytes
    what: str


def attr(kind: int, payload: bytes) -> bytes:
    """One struct nlattr, padded to four bytes."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def u32(kind: int, value: int) -> bytes:
    return struct.pack("=HHI", 8, kind, value)


def text(kind: int, value: str) -> bytes:
    return attr(kind, value.encode() + b"\0")


def mac_bytes(mac: str) -> bytes:
    raw = bytes.fromhex(mac.replace(":", ""))
    if len(raw) != 6:
        raise ValueError(f"not a MAC address: {mac!r}")
    return raw


def _ifinfo(index: int = 0, flags: int = 0, change: int = 0, family: int = 0) -> bytes:
    return struct.pack("=BxHiII", family, 0, index, flags, change)


def _up(up: bool) -> bytes:
    return _ifinfo(0, IFF_UP if up else 0, IFF_UP if up else 0)


def _link(
    *, name: str | None, mac: str | None, mtu: int | None, group: int = 0, queues: int | None = None
) -> bytes:
    parts = []
    if name is not None:
        parts.append(text(IFLA_IFNAME, name))
    if mac:
        parts.append(attr(IFLA_ADDRESS, mac_bytes(mac)))
    if mtu:
        parts.append(u32(IFLA_MTU, mtu))
    if group:
        parts.append(u32(IFLA_GROUP, group))
    if queues:
        parts += [u32(IFLA_NUM_TX_QUEUES, queues), u32(IFLA_NUM_RX_QUEUES, queues)]
    return b"".join(parts)


def _info(kind: str, data: bytes | None = None) -> bytes:
    inner = text(IFLA_INFO_KIND, kind)
    if data is not None:
        inner += attr(IFLA_INFO_DATA, data)
    return attr(IFLA_LINKINFO, inner)


def new_veth(
    name: str,
    peer: str,
    *,
    mac: str | None = None,
    peer_mac: str | None = None,
    mtu: int | None = None,
    peer_ns_fd: int | None = None,
    master: int | None = None,
    up: bool = False,
    group: int = 0,
    peer_group: int = 0,
    queues: int | None = None,
) -> Message:
    """A veth pair: `name` where the socket lives, `peer` in the namespace of `peer_ns_fd`.

    `mtu` in bytes and `queues` (transmit and receive each) go for both ends. The peer cannot be
    brought up here: at that moment it has no other end and the kernel answers ENOTCONN.
    """
    far = _up(False) + _link(name=peer, mac=peer_mac, mtu=mtu, group=peer_group, queues=queues)
    if peer_ns_fd is not None:
        far += u32(IFLA_NET_NS_FD, peer_ns_fd)
    body = _up(up) + _link(name=name, mac=mac, mtu=mtu, group=group, queues=queues)
    if master:
        body += u32(IFLA_MASTER, master)
    body += _info("veth", attr(1, far))
    return Message(RTM_NEWLINK, ADD, body, f"add veth {name} with peer {peer}")


def set_link(
    index: int,
    *,
    up: bool | None = None,
    mtu: int | None = None,
    mac: str | None = None,
    master: int | None = None,
    group: int | None = None,
    name: str | None = None,
    addrgenmode_none: bool = False,
    promisc: bool | None = None,
) -> Message:
    """Change the link `index`; `master` 0 releases it.

    The kernel brings a link up before it reads the address generation mode, so that mode with
    `up` would come too late: ValueError.
    """
    if up and addrgenmode_none:
        raise ValueError("set addrgenmode_none in a message before the one with up")
    flags = (IFF_UP if up else 0) | (IFF_PROMISC if promisc else 0)
    change = (IFF_UP if up is not None else 0) | (IFF_PROMISC if promisc is not None else 0)
    body = _ifinfo(index, flags, change) + _link(name=name, mac=mac, mtu=mtu)
    if master is not None:
        body += u32(IFLA_MASTER, master)
    if group is not None:
        body += u32(IFLA_GROUP, group)
    if addrgenmode_none:
        body += attr(IFLA_AF_SPEC, attr(socket.AF_INET6, attr(8, b"\1")))
    asked = {"up": up, "mtu": mtu, "mac": mac, "master": master, "group": group, "name": name}
    asked |= {"promisc": promisc, "addrgenmode": "none" if addrgenmode_none else None}
    words = " ".join(f"{key}={value}" for key, value in asked.items() if value is not None)
    return Message(RTM_SETLINK, NLM_F_REQUEST, body, f"set link {index} {words}")


def new_bridge(
    name: str,
    mac: str | None = None,
    mtu: int | None = None,
    vlan_filtering: bool = False,
    up: bool = False,
) -> Message:
    data = attr(IFLA_BR_VLAN_FILTERING, b"\1") if vlan_filtering else b""
    body = _up(up) + _link(name=name, mac=mac, mtu=mtu) + _info("bridge", data)
    return Message(RTM_NEWLINK, ADD, body, f"add bridge {name}")


def new_vlan(name: str, link: int, vid: int, up: bool = False) -> Message:
    """An 802.1Q device `name` for the tag `vid` on top of the link with index `link`."""
    body = _up(up) + text(IFLA_IFNAME, name) + u32(IFLA_LINK, link)
    body += _info("vlan", attr(1, struct.pack("=H", vid)))
    return Message(RTM_NEWLINK, ADD, body, f"add vlan {name} with tag {vid} on link {link}")


def new_dummy(
    name: str,
    mac: str | None = None,
    mtu: int | None = None,
    group: int = 0,
    kind: Literal["dummy", "ifb"] = "dummy",
) -> Message:
    body = _up(False) + _link(name=name, mac=mac, mtu=mtu, group=group) + _info(kind)
    return Message(RTM_NEWLINK, ADD, body, f"add {kind} {name}")


def new_ifb(name: str, mtu: int | None = None, group: int = 0) -> Message:
    body = _up(False) + _link(name=name, mac=None, mtu=mtu, group=group) + _info("ifb")
    return Message(RTM_NEWLINK, ADD, body, f"add ifb {name}")


def new_macvtap(
    name: str,
    *,
    index: int,
    link: int,
    mode: str,
    mac: str | None = None,
    mtu: int | None = None,
    group: int = 0,
    queues: int | None = None,
    ns_fd: int | None = None,
) -> Message:
    """A macvtap with the ifindex `index` in the namespace of `ns_fd`, on top of a link that is
    where the socket lives. It takes all multicast: which groups a guest has joined, the guest's
    kernel knows alone."""
    body = _ifinfo(index, IFF_ALLMULTI, IFF_ALLMULTI)
    body += _link(name=name, mac=mac, mtu=mtu, group=group, queues=queues) + u32(IFLA_LINK, link)
    if ns_fd is not None:
        body += u32(IFLA_NET_NS_FD, ns_fd)
    body += _info("macvtap", u32(1, MACVLAN_MODES[mode]))
    return Message(RTM_NEWLINK, ADD, body, f"add macvtap {name} on link {link}")


def set_vlan_filtering(index: int) -> Message:
    body = _ifinfo(index) + _info("bridge", attr(IFLA_BR_VLAN_FILTERING, b"\1"))
    return Message(RTM_NEWLINK, NLM_F_REQUEST, body, f"enable VLAN filtering on link {index}")


def bridge_vlan(
    index: int,
    vid: int,
    *,
    untagged_pvid: bool,
    on_bridge_itself: bool = False,
    delete: bool = False,
    last: int | None = None,
) -> Message:
    """Let a bridge port (or the bridge's own port) carry the tag `vid`, or `vid` to `last`."""
    flags = VLAN_PVID | VLAN_UNTAGGED if untagged_pvid else 0
    spec = attr(0, struct.pack("=H", BRIDGE_FLAGS_SELF)) if on_bridge_itself else b""
    if last is None or last == vid:
        spec += attr(2, struct.pack("=HH", flags, vid))
    else:
        spec += attr(2, struct.pack("=HH", flags | VLAN_RANGE_BEGIN, vid))
        spec += attr(2, struct.pack("=HH", flags | VLAN_RANGE_END, last))
    body = _ifinfo(index, family=AF_BRIDGE) + attr(IFLA_AF_SPEC, spec)
    verb, kind = ("delete", RTM_DELLINK) if delete else ("add", RTM_SETLINK)
    tags = f"{vid}-{last}" if last else str(vid)
    return Message(kind, NLM_F_REQUEST, body, f"{verb} VLAN {tags} on link {index}")


def _address(index: int, cidr: str, scope: int, nodad: bool) -> bytes:
    ip = ipaddress.ip_interface(cidr)
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    bits = ip.network.prefixlen
    flags = 0x02 if nodad and ip.version == 6 else 0
    body = struct.pack("=BBBBi", family, bits, flags, scope, index)
    body += attr(1, ip.ip.packed) + attr(2, ip.ip.packed)
    if ip.version == 4 and bits < 31:
        body += attr(4, ip.network.broadcast_address.packed)
    return body


def add_address(
    index: int, cidr: str, *, nodad: bool = True, scope: int = SCOPE_UNIVERSE, on: str = ""
) -> Message:
    """`on` is the link's name for the error text. IPv6 skips duplicate detection by default."""
    what = f"add address {cidr} to {on or f'link {index}'}"
    return Message(RTM_NEWADDR, ADD, _address(index, cidr, scope, nodad), what)


def del_address(index: int, cidr: str, *, on: str = "") -> Message:
    what = f"delete address {cidr} from {on or f'link {index}'}"
    return Message(RTM_DELADDR, NLM_F_REQUEST, _address(index, cidr, 0, False), what)


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
    protocol: int = RTPROT_STATIC,
    onlink: bool = False,
    on: str = "",
) -> Message:
    """A unicast route; the default is 0.0.0.0/0 or ::/0. mtu and advmss in bytes."""
    net = ipaddress.ip_network(dst)
    family = socket.AF_INET if net.version == 4 else socket.AF_INET6
    where = TABLE_MAIN if table is None else table
    if scope is None:
        scope = SCOPE_LINK if net.version == 4 and not gateway else SCOPE_UNIVERSE
    metrics = (u32(2, mtu) if mtu else b"") + (u32(8, advmss) if advmss else b"")
    small = where if where <= 255 else 0
    head = (family, net.prefixlen, 0, 0, small, protocol, scope, 1, 0x4 if onlink else 0)
    body = struct.pack("=BBBBBBBBI", *head)
    body += _route_attrs(net, gateway, index, where, priority, metrics)
    via = f" via {gateway}" if gateway else ""
    return Message(RTM_NEWROUTE, ADD, body, f"add route {dst}{via} by {on or f'link {index}'}")


def add_neighbour(index: int, ip: str, mac: str, *, on: str = "") -> Message:
    """A permanent entry; one that the kernel learned before is replaced."""
    address = ipaddress.ip_address(ip)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = struct.pack("=BxHiHBB", family, 0, index, NUD_PERMANENT, 0, 0)
    body += attr(1, address.packed) + attr(2, mac_bytes(mac))
    what = f"add neighbour {ip} to {on or f'link {index}'}"
    return Message(RTM_NEWNEIGH, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE, body, what)


def del_link(
    index: int | None = None, group: int | None = None, netnsid: int | None = None
) -> Message:
    """Delete one link, or all links of a group (never group 0: that is every other link): those
    of the socket's namespace, or of the one that it knows as `netnsid`."""
    if (index is None) == (group is None) or index == 0 or group == 0:
        raise ValueError("del_link needs either an index or a group, not 0")
    if index is not None:
        return Message(RTM_DELLINK, NLM_F_REQUEST, _ifinfo(index), f"delete link {index}")
    assert group is not None
    body = _ifinfo() + u32(IFLA_GROUP, group)
    if netnsid is not None:
        body += u32(IFLA_TARGET_NETNSID, netnsid)
    return Message(RTM_DELLINK, NLM_F_REQUEST, body, f"delete the links of group {group}")


def get_link(*, name: str | None = None, index: int | None = None) -> Message:
    """Without statistics, which are half of the answer."""
    body = _ifinfo(index or 0)
    if name is not None:
        body += text(IFLA_IFNAME, name)
    body += u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    return Message(RTM_GETLINK, NLM_F_REQUEST, body, f"read link {name or index}")
