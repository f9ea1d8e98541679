"""The encoders of link messages against pyroute2's, byte for byte."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from cni.kernel import bridge_vlans, rtnl_encode, rtnl_queries
from cni.kernel.netlink_message import Message, encode
from cni.kernel.rtnl_decode import decode_link
from tests.unit.purekit import CREATE_EXCL, REQUEST, pyroute

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
MAC, MAC2 = "02:00:00:00:00:01", "02:00:00:00:00:02"
Attrs = list[tuple[str, Any]]


def veth(far: Attrs, near: Attrs, **head: int) -> bytes:
    peer = {"index": 0, "flags": 0, "change": 0, "attrs": far}
    info: Attrs = [
        ("IFLA_INFO_KIND", "veth"),
        ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]}),
    ]
    attrs = [*near, ("IFLA_LINKINFO", {"attrs": info})]
    return pyroute(ifinfmsg, NEWLINK, CREATE_EXCL, head, attrs)


def link(kind: int, header_flags: int, attrs: Attrs, **head: int) -> bytes:
    return pyroute(ifinfmsg, kind, header_flags, head, attrs)


def info(kind: str, *data: tuple[str, Any] | None) -> tuple[str, Any]:
    attrs: Attrs = [("IFLA_INFO_KIND", kind)]
    if data != (None,):
        attrs.append(("IFLA_INFO_DATA", {"attrs": list(data)}))
    return ("IFLA_LINKINFO", {"attrs": attrs})


def macvtap(attrs: Attrs, mode: str) -> bytes:
    attrs = [*attrs, info("macvtap", ("IFLA_MACVTAP_MODE", mode))]
    return link(NEWLINK, CREATE_EXCL, attrs, index=140000, flags=0x200, change=0x200)


LINKS = {
    "veth, plain": (
        rtnl_encode.new_veth("a", "b"),
        veth([("IFLA_IFNAME", "b")], [("IFLA_IFNAME", "a")]),
    ),
    "veth, everything": (
        rtnl_encode.new_veth(
            "vlh0123456789ab",
            "eth0",
            mac=MAC,
            peer_mac=MAC2,
            mtu=1450,
            peer_ns_fd=9,
            master=4,
            up=True,
            group=3,
            peer_group=0x40000001,
            queues=4,
        ),
        veth(
            [
                ("IFLA_IFNAME", "eth0"),
                ("IFLA_ADDRESS", MAC2),
                ("IFLA_MTU", 1450),
                ("IFLA_GROUP", 0x40000001),
                ("IFLA_NUM_TX_QUEUES", 4),
                ("IFLA_NUM_RX_QUEUES", 4),
                ("IFLA_NET_NS_FD", 9),
            ],
            [
                ("IFLA_IFNAME", "vlh0123456789ab"),
                ("IFLA_ADDRESS", MAC),
                ("IFLA_MTU", 1450),
                ("IFLA_GROUP", 3),
                ("IFLA_NUM_TX_QUEUES", 4),
                ("IFLA_NUM_RX_QUEUES", 4),
                ("IFLA_MASTER", 4),
            ],
            flags=1,
            change=1,
        ),
    ),
    "set, up": (
        rtnl_encode.set_link(5, up=True),
        link(SETLINK, REQUEST, [], index=5, flags=1, change=1),
    ),
    "set, down": (rtnl_encode.set_link(5, up=False), link(SETLINK, REQUEST, [], index=5, change=1)),
    "set, everything": (
        rtnl_encode.set_link(
            5, mtu=9000, mac=MAC, master=0, group=7, name="x", addrgenmode_none=True
        ),
        link(
            SETLINK,
            REQUEST,
            [
                ("IFLA_IFNAME", "x"),
                ("IFLA_ADDRESS", MAC),
                ("IFLA_MTU", 9000),
                ("IFLA_MASTER", 0),
                ("IFLA_GROUP", 7),
                (
                    "IFLA_AF_SPEC",
                    {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]},
                ),
            ],
            index=5,
        ),
    ),
    "bridge": (
        rtnl_encode.new_bridge("br0", MAC, 1500, True, True),
        link(
            NEWLINK,
            CREATE_EXCL,
            [
                ("IFLA_IFNAME", "br0"),
                ("IFLA_ADDRESS", MAC),
                ("IFLA_MTU", 1500),
                info("bridge", ("IFLA_BR_VLAN_FILTERING", 1)),
            ],
            flags=1,
            change=1,
        ),
    ),
    "bridge, plain": (
        rtnl_encode.new_bridge("br0"),
        link(NEWLINK, CREATE_EXCL, [("IFLA_IFNAME", "br0"), info("bridge")]),
    ),
    "ifb": (
        rtnl_encode.new_ifb("vli1", 1450, 7),
        link(
            NEWLINK,
            CREATE_EXCL,
            [
                ("IFLA_IFNAME", "vli1"),
                ("IFLA_MTU", 1450),
                ("IFLA_GROUP", 7),
                info("ifb", None),
            ],
        ),
    ),
    "VLAN filtering": (
        rtnl_encode.set_vlan_filtering(6),
        link(NEWLINK, REQUEST, [info("bridge", ("IFLA_BR_VLAN_FILTERING", 1))], index=6),
    ),
    "vlan": (
        rtnl_encode.new_vlan("br0.42", 3, 42, up=True),
        link(
            NEWLINK,
            CREATE_EXCL,
            [("IFLA_IFNAME", "br0.42"), ("IFLA_LINK", 3), info("vlan", ("IFLA_VLAN_ID", 42))],
            flags=1,
            change=1,
        ),
    ),
    "dummy": (
        rtnl_encode.new_dummy("d0", MAC, 1280),
        link(
            NEWLINK,
            CREATE_EXCL,
            [("IFLA_IFNAME", "d0"), ("IFLA_ADDRESS", MAC), ("IFLA_MTU", 1280), info("dummy", None)],
        ),
    ),
    "dummy that asks by ARP": (
        rtnl_encode.new_dummy("d0", arp=True),
        link(NEWLINK, CREATE_EXCL, [("IFLA_IFNAME", "d0"), info("dummy", None)], change=0x80),
    ),
    "macvtap": (
        rtnl_encode.new_macvtap("eth0", index=140000, link=3, mode="passthru"),
        macvtap([("IFLA_IFNAME", "eth0"), ("IFLA_LINK", 3)], "passthru"),
    ),
    "macvtap, everything": (
        rtnl_encode.new_macvtap(
            "eth0",
            index=140000,
            link=3,
            mode="bridge",
            mac=MAC,
            mtu=9000,
            group=0x40000001,
            queues=2,
            ns_fd=9,
        ),
        macvtap(
            [
                ("IFLA_IFNAME", "eth0"),
                ("IFLA_ADDRESS", MAC),
                ("IFLA_MTU", 9000),
                ("IFLA_GROUP", 0x40000001),
                ("IFLA_NUM_TX_QUEUES", 2),
                ("IFLA_NUM_RX_QUEUES", 2),
                ("IFLA_LINK", 3),
                ("IFLA_NET_NS_FD", 9),
            ],
            "bridge",
        ),
    ),
    "delete by index": (rtnl_encode.del_link(8), link(DELLINK, REQUEST, [], index=8)),
    "delete by group": (
        rtnl_encode.del_link(group=0x40000001),
        link(DELLINK, REQUEST, [("IFLA_GROUP", 0x40000001)]),
    ),
    "delete by group elsewhere": (
        rtnl_encode.del_link(group=0x40000001, netnsid=3),
        link(DELLINK, REQUEST, [("IFLA_GROUP", 0x40000001), ("IFLA_IF_NETNSID", 3)]),
    ),
    "get by name": (
        rtnl_queries.get_link(name="eth0"),
        link(GETLINK, REQUEST, [("IFLA_IFNAME", "eth0"), ("IFLA_EXT_MASK", 8)]),
    ),
    "get by index": (
        rtnl_queries.get_link(index=2),
        link(GETLINK, REQUEST, [("IFLA_EXT_MASK", 8)], index=2),
    ),
}


def bridge_vlan(kind: int, *spec: tuple[str, Any]) -> bytes:
    attrs = [("IFLA_AF_SPEC", {"attrs": list(spec)})]
    return link(kind, REQUEST, attrs, family=socket.AF_BRIDGE, index=9)


def vlan_info(flags: int, vid: int) -> tuple[str, Any]:
    return ("IFLA_BRIDGE_VLAN_INFO", {"flags": flags, "vid": vid})


VLANS = {
    "untagged": (
        rtnl_encode.bridge_vlan(9, 42, untagged_pvid=True),
        bridge_vlan(SETLINK, vlan_info(6, 42)),
    ),
    "tagged": (
        rtnl_encode.bridge_vlan(9, 100, untagged_pvid=False),
        bridge_vlan(SETLINK, vlan_info(0, 100)),
    ),
    "the bridge's own": (
        rtnl_encode.bridge_vlan(9, 42, untagged_pvid=False, on_bridge_itself=True),
        bridge_vlan(SETLINK, ("IFLA_BRIDGE_FLAGS", 2), vlan_info(0, 42)),
    ),
    "delete all": (
        bridge_vlans.delete_vlans(9),
        bridge_vlan(DELLINK, vlan_info(8, 1), vlan_info(16, 4094)),
    ),
}


CASES = [
    pytest.param(*case, id=f"{table}: {name}")
    for table, cases in {
        "link": LINKS,
        "bridge VLAN": VLANS,
    }.items()
    for name, case in cases.items()
]


@pytest.mark.parametrize(("message", "expected"), CASES)
def test_as_pyroute2(message: Message, expected: bytes) -> None:
    assert encode(message, 7).hex() == expected.hex()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rtnl_encode.set_link(3, up=True, addrgenmode_none=True), "before"),
        (lambda: rtnl_encode.del_link(), "either"),
        (lambda: rtnl_encode.del_link(3, 4), "either"),
        (lambda: rtnl_encode.del_link(group=0), "not 0"),
        (lambda: rtnl_encode.del_link(0), "not 0"),
        (lambda: rtnl_encode.new_veth("a", "b", mac="02:00:00:00:00"), "not a MAC"),
    ],
)
def test_refused_before_the_kernel_sees_it(call: Callable[[], Message], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (rtnl_encode.set_link(3, mtu=1400, up=True), "set link 3 up mtu 1400"),
        (rtnl_encode.set_link(3, up=False, master=0), "set link 3 down nomaster"),
        (rtnl_encode.set_link(3, mac=MAC, group=7), f"set link 3 address {MAC} group 7"),
        (rtnl_encode.set_link(3, master=9, name="x"), "set link 3 master 9 name x"),
        (rtnl_encode.set_link(3, addrgenmode_none=True), "set link 3 addrgenmode none"),
    ],
)
def test_a_change_reads_like_ip_link(message: Message, words: str) -> None:
    assert message.what == words


@pytest.mark.parametrize(("raw", "known"), [(0, 0), (3, 3), (-1, None)])
def test_a_namespace_without_an_id_is_not_one(raw: int, known: int | None) -> None:
    """The kernel says -1 for the far end in a namespace that is about to end."""
    body = rtnl_encode.ifinfo(7) + struct.pack("=HHi", 8, rtnl_encode.IFLA_LINK_NETNSID, raw)
    assert decode_link(body).link_netnsid == known
