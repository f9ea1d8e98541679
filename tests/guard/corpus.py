"""Frames with names, and for which reason each is dropped; "" passes.

The guest has STRICT's values: one MAC and one of VRRP, one address of each family and two networks.
"""

from __future__ import annotations

from dataclasses import replace

from cni.kernel.guard.values import Values
from tests.guard.corpus_v6 import ADVERTISE, FRAG, HBH, NDS, UNSET, V6S, Frames
from tests.guard.frames import (
    ARP,
    ICMP,
    ICMP6,
    IGMP,
    IPV4,
    IPV6,
    LL,
    NEIGHBOUR,
    NO_V4,
    OTHER,
    OWN,
    RARP,
    TCP,
    UDP,
    V4,
    V4_OTHER,
    V4_PAIR,
    V6,
    V6_OTHER,
    VRRP,
    arp,
    e4,
    e6,
    eth,
    ext,
    frag,
    ipv4,
    lladdr,
    na,
    nd,
    ns,
    ra,
    redirect,
    tagged,
    udp,
)

STRICT = Values(
    mac=OWN,
    addresses=(V4, V6, "10.9.0.0/24", "fd00:9::/64"),
    macs=(VRRP,),
    vlans=(100, 200),
    ether_types=(0x88B5,),
)
LAYER_2 = Values(mac=OWN)
SERVER = replace(STRICT, dhcp_server=True, router=True, l2control=True)

BCAST = "255.255.255.255"
MORE, FRAGMENT_2 = 0x2000, 0x00B9
PLAIN = e4()

FROM: Frames = {
    "own MAC": ("", PLAIN),
    "own VRRP MAC": ("", eth(IPV4, ipv4(), VRRP)),
    "another's MAC": ("mac", eth(IPV4, ipv4(), OTHER)),
    "own MAC but its last bit": ("mac", eth(IPV4, ipv4(), "02:00:00:00:00:00")),
    "own MAC but its first bit, a group's": ("mac", eth(IPV4, ipv4(), "03:00:00:00:00:01")),
    "MAC zero": ("mac", eth(IPV4, ipv4(), "00:00:00:00:00:00")),
    "MAC broadcast": ("mac", eth(IPV4, ipv4(), "ff:ff:ff:ff:ff:ff")),
    "MAC in the place of the destination": ("mac", eth(IPV4, ipv4(), OTHER, OWN)),
    "header alone, IPv4": ("ip", eth(IPV4)),
    "header alone, IPv6": ("ip", eth(IPV6)),
    "header alone, ARP": ("arp", eth(ARP)),
}
TAGS: Frames = {
    "tag of the trunk": ("", tagged(PLAIN, 100)),
    "tag of the trunk, with a priority": ("", tagged(PLAIN, 0xE0C8)),
    "tag of another": ("vlan", tagged(PLAIN, 101)),
    "tag zero": ("vlan", tagged(PLAIN, 0)),
    "tag 4095": ("vlan", tagged(PLAIN, 4095)),
    "two tags": ("vlan", tagged(PLAIN, 100, 100)),
    "two tags, the inner another's": ("vlan", tagged(PLAIN, 100, 101)),
    "802.1ad tag of the trunk": ("", tagged(PLAIN, 100, kind=0x88A8)),
    "802.1ad tag of another": ("vlan", tagged(PLAIN, 101, kind=0x88A8)),
    "802.1ad, then 802.1Q": ("vlan", tagged(tagged(PLAIN, 100), 100, kind=0x88A8)),
    "half a tag": ("vlan", eth(0x8100, b"\0\x64")),
    "tag, and another's address": ("ip", tagged(e4(source=V4_OTHER), 100)),
    "tag, and ARP with another's address": ("arp", tagged(eth(ARP, arp(sender=V4_OTHER)), 100)),
    "tag, and RA": ("router", tagged(nd(ra(), source=LL), 100)),
    "tag, and NA with another's MAC": ("nd", tagged(nd(na(V6, lladdr(2, OTHER))), 100)),
    "tag, and NA": ("", tagged(nd(na(V6, lladdr(2))), 100)),
    "tag 0x9100": ("ethertype", tagged(PLAIN, 100, kind=0x9100)),
}
CONTROL: Frames = {
    f"control {last:02x}": ("l2control", eth(0x88CC, bytes(46), to=f"01:80:c2:00:00:{last:02x}"))
    for last in (0, 1, 2, 3, 0x0E, 0x0F)
} | {
    "control, STP in LLC": ("l2control", eth(38, b"\x42\x42\x03", to="01:80:c2:00:00:00")),
    "control, with IPv4 in it": ("l2control", eth(IPV4, ipv4(), to="01:80:c2:00:00:00")),
    "control, behind a tag": ("l2control", tagged(eth(38, bytes(46), to="01:80:c2:00:00:00"), 100)),
    "control 10, which is none": ("ethertype", eth(0x88CC, bytes(46), to="01:80:c2:00:00:10")),
    "control 20, GMRP": ("ethertype", eth(38, bytes(46), to="01:80:c2:00:00:20")),
}
ARPS: Frames = {
    "ARP request": ("", eth(ARP, arp())),
    "ARP reply": ("", eth(ARP, arp(2, to=NEIGHBOUR))),
    "ARP request, padded": ("", eth(ARP, arp() + bytes(18))),
    "ARP gratuitous": ("", eth(ARP, arp(target=V4))),
    "ARP for a pair": ("", eth(ARP, arp(2, sender=V4_PAIR))),
    "ARP for VRRP": ("", eth(ARP, arp(2, sender=V4_PAIR, source=VRRP))),
    "ARP probe": ("", eth(ARP, arp(sender=NO_V4, target=V4))),
    "ARP probe for another's": ("arp", eth(ARP, arp(sender=NO_V4))),
    "ARP reply from zero": ("arp", eth(ARP, arp(2, sender=NO_V4, target=V4))),
    "ARP request from another's": ("arp", eth(ARP, arp(sender=V4_OTHER))),
    "ARP reply from another's": ("arp", eth(ARP, arp(2, sender=V4_OTHER))),
    "ARP gratuitous for another's": ("arp", eth(ARP, arp(2, sender=V4_OTHER, target=V4_OTHER))),
    "ARP with another's MAC": ("arp", eth(ARP, arp(source=OTHER))),
    "ARP reply with another's MAC": ("arp", eth(ARP, arp(2, source=OTHER))),
    "ARP operation 3": ("arp", eth(ARP, arp(3))),
    "ARP operation 8": ("arp", eth(ARP, arp(8))),
    "ARP operation 0x100": ("arp", eth(ARP, arp(0x100))),
    "ARP hardware 6": ("arp", eth(ARP, arp(head="000608000604"))),
    "ARP protocol IPv6": ("arp", eth(ARP, arp(head="000186dd0604"))),
    "ARP hardware size 8": ("arp", eth(ARP, arp(head="000108000804"))),
    "ARP protocol size 16": ("arp", eth(ARP, arp(head="000108000610"))),
    "ARP of 27 bytes": ("arp", eth(ARP, arp()[:27])),
}
NOBODY = {"sender": NO_V4, "target": NO_V4}
RARPS: Frames = {
    "RARP of QEMU": ("", eth(RARP, arp(3, to=OWN, **NOBODY) + bytes(18))),
    "RARP of an old QEMU": ("", eth(0x0835, arp(3, to=OWN, **NOBODY))),
    "RARP with another's MAC": ("arp", eth(RARP, arp(3, source=OTHER, to=OWN, **NOBODY))),
    "RARP for another's MAC": ("arp", eth(RARP, arp(3, to=OTHER, **NOBODY))),
    "RARP reply": ("arp", eth(RARP, arp(4, to=OWN, **NOBODY))),
    "RARP with a sender": ("arp", eth(RARP, arp(3, to=OWN, target=NO_V4))),
    "RARP with a target": ("arp", eth(RARP, arp(3, to=OWN, sender=NO_V4))),
    "RARP of 27 bytes": ("arp", eth(RARP, arp(3, to=OWN, **NOBODY)[:27])),
    "old RARP with another's MAC": ("arp", eth(0x0835, arp(3, source=OTHER, **NOBODY))),
}
DISCOVER, OFFER = udp(68, 67), udp(67, 68)
V4S: Frames = {
    "IPv4 of a pair": ("", e4(source=V4_PAIR)),
    "IPv4 ICMP": ("", e4(protocol=ICMP)),
    "IPv4 UDP": ("", e4(udp(5000, 53), protocol=UDP)),
    "IPv4 with options": ("", e4(options=bytes(8))),
    "IPv4 fragment, first": ("", e4(udp(5000, 53), protocol=UDP, fragment=MORE)),
    "IPv4 fragment, later": ("", e4(protocol=UDP, fragment=FRAGMENT_2)),
    "IPv4 of another": ("ip", e4(source=V4_OTHER)),
    "IPv4 beside a pair": ("ip", e4(source="10.9.1.1")),
    "IPv4 fragment of another": ("ip", e4(source=V4_OTHER, fragment=FRAGMENT_2)),
    "IPv4 from zero": ("ip", e4(source=NO_V4)),
    "IPv4 from broadcast": ("ip", e4(source=BCAST)),
    "IPv4 version 6": ("ip", e4(first=0x65)),
    "IPv4 of 4 words": ("ip", e4(first=0x44)),
    "IPv4 of 19 bytes": ("ip", e4(b"")[:-1]),
    "DHCP discover": ("", e4(DISCOVER, source=NO_V4, to=BCAST, protocol=UDP)),
    "DHCP renewal": ("", e4(DISCOVER, protocol=UDP)),
    "DHCP discover to one": ("ip", e4(DISCOVER, source=NO_V4, protocol=UDP)),
    "DHCP discover to another port": ("ip", e4(udp(68, 69), source=NO_V4, to=BCAST, protocol=UDP)),
    "DHCP discover from another port": (
        "ip",
        e4(udp(69, 67), source=NO_V4, to=BCAST, protocol=UDP),
    ),
    "DHCP discover by TCP": ("ip", e4(DISCOVER, source=NO_V4, to=BCAST, protocol=TCP)),
    "DHCP discover in a fragment": (
        "ip",
        e4(DISCOVER, source=NO_V4, to=BCAST, protocol=UDP, fragment=MORE),
    ),
    "DHCP offer": ("dhcp_server", e4(OFFER, protocol=UDP)),
    "DHCP offer behind options": ("dhcp_server", e4(OFFER, protocol=UDP, options=bytes(40))),
    "DHCP offer of another": ("dhcp_server", e4(OFFER, protocol=UDP, source=V4_OTHER)),
    "DHCP offer in a fragment": ("ip", e4(OFFER, protocol=UDP, fragment=MORE)),
    "UDP from 546 in a fragment": ("ip", e4(udp(546, 5), protocol=UDP, fragment=MORE)),
    "UDP to 547 in a fragment": ("ip", e4(udp(5, 547), protocol=UDP, fragment=MORE)),
    "UDP without ports": ("ip", e4(b"\0\x43", protocol=UDP)),
    "UDP without ports in a fragment": ("ip", e4(b"", protocol=UDP, fragment=MORE)),
    "UDP whose ports are padding": ("ip", e4(udp(5, 6), protocol=UDP, total=20)),
    "UDP with half a header": ("ip", e4(udp(5, 6), protocol=UDP, total=24)),
    "UDP whose ports are beyond the frame": ("ip", e4(OFFER, protocol=UDP, first=0x4F)),
    "UDP, evil bit": ("dhcp_server", e4(OFFER, protocol=UDP, fragment=0x8000)),
    "UDP, do not fragment": ("dhcp_server", e4(OFFER, protocol=UDP, fragment=0x4000)),
    "IGMP": ("", e4(protocol=IGMP, to="224.0.0.22", options=b"\x94\x04\0\0")),
    "IGMP from zero": ("", e4(source=NO_V4, protocol=IGMP, to="224.0.0.22")),
    "IGMP of another": ("ip", e4(source=V4_OTHER, protocol=IGMP)),
    "IGMP from zero in a fragment": ("ip", e4(source=NO_V4, protocol=IGMP, fragment=MORE)),
}
TYPES: Frames = {
    "EtherType of the list": ("", eth(0x88B5, bytes(46))),
    "EtherType beside the list": ("ethertype", eth(0x88B6, bytes(46))),
    "EtherType of the list, swapped": ("ethertype", eth(0xB588, bytes(46))),
    "EtherType MPLS": ("ethertype", eth(0x8847, bytes(46))),
    "EtherType PPPoE": ("ethertype", eth(0x8863, bytes(46))),
    "EtherType EAPOL": ("ethertype", eth(0x888E, bytes(46))),
    "EtherType of a loop": ("ethertype", eth(0x9000, bytes(46))),
    "802.3 with LLC": ("ethertype", eth(46, bytes(46))),
    "802.3 with SNAP and IPv4": ("ethertype", eth(48, bytes.fromhex("aaaa03000000") + ipv4())),
    "EtherType zero": ("ethertype", eth(0, bytes(46))),
}
CORPUS: Frames = {**FROM, **TAGS, **CONTROL, **ARPS, **RARPS, **V4S, **V6S, **NDS, **TYPES}

# What differs for a guest of a network without addresses, and for one that may serve others.
ON_LAYER_2: Frames = {
    "any IPv4": ("", e4(source=V4_OTHER)),
    "any IPv6": ("", e6(source=V6_OTHER)),
    "any ARP": ("", eth(ARP, arp(sender=V4_OTHER))),
    "any NA": ("", nd(na(V6_OTHER, lladdr(2)), source=V6_OTHER)),
    "any DAD": ("", nd(ns(V6_OTHER), **UNSET)),
    "another's MAC": ("mac", eth(IPV4, ipv4(), OTHER)),
    "ARP with another's MAC": ("arp", eth(ARP, arp(source=OTHER))),
    "NA with another's MAC": ("nd", nd(na(V6, lladdr(2, OTHER)))),
    "a tag": ("vlan", tagged(PLAIN, 100)),
    "RA": ("router", nd(ra(), source=LL)),
    "RA behind a header": ("nd", e6(ext(ICMP6) + ra(), source=LL, protocol=HBH)),
    "DHCP offer": ("dhcp_server", e4(OFFER, source=V4_OTHER, protocol=UDP)),
    "DHCP offer in a fragment": ("ip", e4(OFFER, protocol=UDP, fragment=MORE)),
    "control": ("l2control", eth(38, to="01:80:c2:00:00:00")),
    "an EtherType": ("ethertype", eth(0x88B5, bytes(46))),
}
BY_A_SERVER: Frames = {
    "DHCP offer": ("", e4(OFFER, protocol=UDP)),
    "DHCP offer of another": ("ip", e4(OFFER, source=V4_OTHER, protocol=UDP)),
    "DHCP offer in a fragment": ("ip", e4(OFFER, protocol=UDP, fragment=MORE)),
    "DHCPv6 advertise": ("", e6(ADVERTISE, source=LL, protocol=UDP)),
    "RA": ("", nd(ra(lladdr(1)), source=LL)),
    "RA with hop limit 1": ("nd", nd(ra(), source=LL, hops=1)),
    "RA of another": ("ip", nd(ra(), source=V6_OTHER)),
    "RA in a fragment": ("nd", e6(frag(ICMP6) + ra(), source=LL, protocol=FRAG)),
    "redirect": ("", nd(redirect(lladdr(2, OTHER)), source=LL)),
    "control": ("", eth(38, b"\x42\x42\x03", to="01:80:c2:00:00:00")),
    "control, with another's MAC": ("mac", eth(38, b"\x42", OTHER, "01:80:c2:00:00:00")),
    "control, behind another's tag": ("vlan", tagged(eth(38, to="01:80:c2:00:00:00"), 101)),
    "another's address": ("ip", e4(source=V4_OTHER)),
}
CASES = [
    (who, values, name, reason, frame)
    for who, values, frames in (
        ("strict", STRICT, CORPUS),
        ("layer 2", LAYER_2, ON_LAYER_2),
        ("server", SERVER, BY_A_SERVER),
    )
    for name, (reason, frame) in frames.items()
]
