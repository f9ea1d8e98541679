"""Encoders for the rtnetlink messages about links, addresses and neighbours. Pure.

Layouts: rtnetlink(7), linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h.
tests/unit/test_rtnl_encode.py compares each with pyroute2's encoding. An `index` is an ifindex.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Any, Literal

from cni.kernel.netlink_message import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    attr,
    text,
    u32,
)
from cni.kernel.netlink_message import Message as Message

ADD = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL

RTM_NEWLINK, RTM_DELLINK, RTM_SETLINK = 16, 17, 19
RTM_NEWADDR, RTM_NEWNEIGH = 20, 28
NUD_STALE, NUD_PERMANENT = 0x04, 0x80

IFF_UP, IFF_NOARP, IFF_ALLMULTI = 0x1, 0x80, 0x200
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_GROUP = 18, 26, 27
IFLA_NET_NS_FD, IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 28, 31, 32
IFLA_LINK_NETNSID, IFLA_TARGET_NETNSID = 37, 46
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_BR_VLAN_FILTERING = 1, 2, 7
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, b"\1"
IFA_F_NODAD = 0x02

AF_BRIDGE, BRIDGE_FLAGS_SELF = 7, 2
VLAN_PVID, VLAN_UNTAGGED = 0x2, 0x4

SCOPE_UNIVERSE = 0

MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}


def mac_bytes(mac: str) -> bytes:
    """The six bytes of a MAC address with colons or without. Raises ValueError."""
    raw = bytes.fromhex(mac.replace(":", ""))
    if len(raw) != 6:
        raise ValueError(f"not a MAC address: {mac!r}")
    return raw


def ifinfo(index: int = 0, flags: int = 0, change: int = 0, family: int = 0) -> bytes:
    """Encode the header of a message about links, struct ifinfomsg in linux/rtnetlink.h."""
    return struct.pack("=BxHiII", family, 0, index, flags, change)


def _up(up: bool) -> bytes:
    return ifinfo(0, IFF_UP if up else 0, IFF_UP if up else 0)


def _link(
    *, name: str | None, mac: str | None, mtu: int | None, group: int = 0, queues: int | None = None
) -> bytes:
    attrs = b"" if name is None else text(IFLA_IFNAME, name)
    if mac:
        attrs += attr(IFLA_ADDRESS, mac_bytes(mac))
    if mtu:
        attrs += u32(IFLA_MTU, mtu)
    if group:
        attrs += u32(IFLA_GROUP, group)
    if queues:
        attrs += u32(IFLA_NUM_TX_QUEUES, queues) + u32(IFLA_NUM_RX_QUEUES, queues)
    return attrs


def _info(kind: str, data: bytes | None = None) -> bytes:
    nested = text(IFLA_INFO_KIND, kind) + (b"" if data is None else attr(IFLA_INFO_DATA, data))
    return attr(IFLA_LINKINFO, nested)


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
    """Add a veth pair: `name` in the socket's namespace, `peer` in that of `peer_ns_fd`.

    `mtu` (bytes) and `queues` (so many for each direction) are those of both ends. The peer cannot
    be set up here: it has no other end yet, and the kernel answers ENOTCONN.
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
) -> Message:
    """Change a link; `mtu` is in bytes, `master` 0 takes it off its bridge.

    `addrgenmode_none` keeps it from making a link-local address. The kernel would read that after
    it has set the link up, and so too late: with `up` it raises ValueError.
    """
    if up and addrgenmode_none:
        raise ValueError("set addrgenmode_none in a message before the one with up")
    flags, change = IFF_UP if up else 0, 0 if up is None else IFF_UP
    body = ifinfo(index, flags, change) + _link(name=name, mac=mac, mtu=mtu)
    if master is not None:
        body += u32(IFLA_MASTER, master)
    if group is not None:
        body += u32(IFLA_GROUP, group)
    if addrgenmode_none:
        mode = attr(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE)
        body += attr(IFLA_AF_SPEC, attr(socket.AF_INET6, mode))
    options = {"mtu": mtu, "address": mac, "master": master, "group": group, "name": name}
    options["addrgenmode"] = "none" if addrgenmode_none else None
    return Message(RTM_SETLINK, NLM_F_REQUEST, body, _as_ip_writes_it(index, up, options))


def _as_ip_writes_it(index: int, up: bool | None, options: dict[str, Any]) -> str:
    """The request in the words of ip-link(8), for an error's text."""
    words = ["set link", str(index)]
    if up is not None:
        words.append("up" if up else "down")
    for key, value in options.items():
        if (key, value) == ("master", 0):
            words.append("nomaster")
        elif value is not None:
            words += [key, str(value)]
    return " ".join(words)


def new_bridge(
    name: str,
    mac: str | None = None,
    mtu: int | None = None,
    vlan_filtering: bool = False,
    up: bool = False,
) -> Message:
    """Add a Linux bridge; `mtu` is in bytes."""
    data = attr(IFLA_BR_VLAN_FILTERING, b"\1") if vlan_filtering else b""
    body = _up(up) + _link(name=name, mac=mac, mtu=mtu) + _info("bridge", data)
    return Message(RTM_NEWLINK, ADD, body, f"add bridge {name}")


def new_vlan(name: str, link: int, vid: int, up: bool = False) -> Message:
    """Add an 802.1Q interface `name` for the tag `vid` on top of the link with index `link`."""
    body = _up(up) + text(IFLA_IFNAME, name) + u32(IFLA_LINK, link)
    body += _info("vlan", attr(1, struct.pack("=H", vid)))
    return Message(RTM_NEWLINK, ADD, body, f"add vlan {name} with tag {vid} on link {link}")


def new_dummy(
    name: str,
    mac: str | None = None,
    mtu: int | None = None,
    group: int = 0,
    kind: Literal["dummy", "ifb"] = "dummy",
    arp: bool = False,
) -> Message:
    """Add a link that has no other end; `mtu` is in bytes, and `arp` takes IFF_NOARP away."""
    body = ifinfo(change=IFF_NOARP if arp else 0)
    body += _link(name=name, mac=mac, mtu=mtu, group=group) + _info(kind)
    return Message(RTM_NEWLINK, ADD, body, f"add {kind} {name}")


def new_ifb(name: str, mtu: int | None = None, group: int = 0) -> Message:
    """Add an ifb, to which ingress is redirected so that a qdisc can limit it."""
    return new_dummy(name, None, mtu, group, "ifb")


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
    """Add a macvtap with the ifindex `index` in the namespace of `ns_fd`.

    `link` is the ifindex of the link below it, in the socket's namespace; `mode` is a key of
    MACVLAN_MODES, `mtu` is in bytes. It takes all multicast: only the guest's kernel knows which
    groups the guest has joined.
    """
    body = ifinfo(index, IFF_ALLMULTI, IFF_ALLMULTI)
    body += _link(name=name, mac=mac, mtu=mtu, group=group, queues=queues) + u32(IFLA_LINK, link)
    if ns_fd is not None:
        body += u32(IFLA_NET_NS_FD, ns_fd)
    body += _info("macvtap", u32(1, MACVLAN_MODES[mode]))
    return Message(RTM_NEWLINK, ADD, body, f"add macvtap {name} on link {link}")


def set_vlan_filtering(index: int) -> Message:
    """Let a bridge look at VLAN tags."""
    body = ifinfo(index) + _info("bridge", attr(IFLA_BR_VLAN_FILTERING, b"\1"))
    return Message(RTM_NEWLINK, NLM_F_REQUEST, body, f"enable VLAN filtering on link {index}")


def bridge_vlan(
    index: int,
    vid: int,
    *,
    untagged_pvid: bool,
    on_bridge_itself: bool = False,
) -> Message:
    """Let a bridge's port, or the bridge itself, carry the VLAN `vid`.

    With `untagged_pvid` frames without a tag come into that VLAN and leave it without one.
    """
    flags = VLAN_PVID | VLAN_UNTAGGED if untagged_pvid else 0
    spec = attr(0, struct.pack("=H", BRIDGE_FLAGS_SELF)) if on_bridge_itself else b""
    spec += attr(2, struct.pack("=HH", flags, vid))
    body = ifinfo(index, family=AF_BRIDGE) + attr(IFLA_AF_SPEC, spec)
    return Message(RTM_SETLINK, NLM_F_REQUEST, body, f"add VLAN {vid} on link {index}")


def add_address(index: int, cidr: str, *, on: str = "") -> Message:
    """Add an address with its prefix length; an IPv6 address is valid without duplicate detection.

    `on` is the link's name for the error's text.
    """
    ip = ipaddress.ip_interface(cidr)
    family, flags = (socket.AF_INET, 0) if ip.version == 4 else (socket.AF_INET6, IFA_F_NODAD)
    bits = ip.network.prefixlen
    body = struct.pack("=BBBBi", family, bits, flags, SCOPE_UNIVERSE, index)
    body += attr(1, ip.ip.packed) + attr(2, ip.ip.packed)
    if ip.version == 4 and bits < 31:
        body += attr(4, ip.network.broadcast_address.packed)
    return Message(RTM_NEWADDR, ADD, body, f"add address {cidr} to {on or f'link {index}'}")


def add_neighbour(index: int, ip: str, mac: str, *, on: str = "") -> Message:
    """Add a permanent neighbour; an entry that the kernel has learned before is replaced.

    `on` is the link's name for the error's text.
    """
    address = ipaddress.ip_address(ip)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = struct.pack("=BxHiHBB", family, 0, index, NUD_PERMANENT, 0, 0)
    body += attr(1, address.packed) + attr(2, mac_bytes(mac))
    what = f"add neighbour {ip} to {on or f'link {index}'}"
    return Message(RTM_NEWNEIGH, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE, body, what)


def update_neighbour(index: int, ip: str, mac: str) -> Message:
    """Correct the MAC of a neighbour that the kernel knows; ENOENT for one that it does not.

    The next packet to it is sent at once, and the entry verified then (NUD_STALE).
    """
    address = ipaddress.ip_address(ip)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = struct.pack("=BxHiHBB", family, 0, index, NUD_STALE, 0, 0)
    body += attr(1, address.packed) + attr(2, mac_bytes(mac))
    what = f"update neighbour {ip} on link {index}"
    return Message(RTM_NEWNEIGH, NLM_F_REQUEST | NLM_F_REPLACE, body, what)


def del_link(
    index: int | None = None, group: int | None = None, netnsid: int | None = None
) -> Message:
    """Delete one link, or all links of a group, of the socket's namespace or of `netnsid`.

    Raises ValueError for group 0, to which all other links belong.
    """
    if (index is None) == (group is None) or index == 0 or group == 0:
        raise ValueError("del_link needs either an index or a group, not 0")
    if index is not None:
        return Message(RTM_DELLINK, NLM_F_REQUEST, ifinfo(index), f"delete link {index}")
    assert group is not None
    body = ifinfo() + u32(IFLA_GROUP, group)
    if netnsid is not None:
        body += u32(IFLA_TARGET_NETNSID, netnsid)
    return Message(RTM_DELLINK, NLM_F_REQUEST, body, f"delete the links of group {group}")
