"""Builders of frames, in which anything can be wrong."""

from __future__ import annotations

import struct
from ipaddress import ip_address

OWN, VRRP, OTHER = "02:00:00:00:00:01", "00:00:5e:00:01:07", "02:00:00:00:00:99"
BROADCAST, NEIGHBOUR = "ff:ff:ff:ff:ff:ff", "02:00:00:00:00:02"
V4, V4_OTHER, V4_PAIR, NO_V4 = "10.1.0.2", "10.1.0.9", "10.9.0.77", "0.0.0.0"
V6, V6_OTHER, V6_PAIR, NO_V6 = "fd00:1::2", "fd00:1::9", "fd00:9::77", "::"
LL, LL_RANDOM = "fe80::ff:fe00:1", "fe80::1234:5678:9abc:def0"
UDP, TCP, ICMP, IGMP, ICMP6 = 17, 6, 1, 2, 58
IPV4, ARP, IPV6, RARP = 0x0800, 0x0806, 0x86DD, 0x8035


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ip(text: str) -> bytes:
    return ip_address(text).packed


def eth(kind: int, payload: bytes = b"", source: str = OWN, to: str = BROADCAST) -> bytes:
    return mac(to) + mac(source) + struct.pack("!H", kind) + payload


def tagged(frame: bytes, *tags: int, kind: int = 0x8100) -> bytes:
    between = b"".join(struct.pack("!HH", kind, tag) for tag in tags)
    return frame[:12] + between + frame[12:]


def arp(
    operation: int = 1,
    sender: str = V4,
    target: str = V4_OTHER,
    source: str = OWN,
    to: str = "00:00:00:00:00:00",
    head: str = "000108000604",
) -> bytes:
    return (
        bytes.fromhex(head)
        + struct.pack("!H", operation)
        + mac(source)
        + ip(sender)
        + mac(to)
        + ip(target)
    )


def ipv4(
    payload: bytes = b"data data",
    source: str = V4,
    to: str = V4_OTHER,
    protocol: int = TCP,
    fragment: int = 0,
    options: bytes = b"",
    first: int | None = None,
    total: int | None = None,
) -> bytes:
    words = 0x45 + len(options) // 4 if first is None else first
    size = 20 + len(options) + len(payload) if total is None else total
    head = struct.pack("!BBHHHBB", words, 0, size, 7, fragment, 64, protocol)
    addresses = ip(source) + ip(to) + options
    folded = sum(struct.unpack(f"!{(len(head) + len(addresses)) // 2}H", head + addresses))
    while folded > 0xFFFF:
        folded = (folded & 0xFFFF) + (folded >> 16)
    return head + struct.pack("!H", 0xFFFF - folded) + addresses + payload  # netfilter looks at it


def udp(source: int, to: int, payload: bytes = b"payload") -> bytes:
    return struct.pack("!HHHH", source, to, 8 + len(payload), 0) + payload


def ipv6(
    payload: bytes = b"data data",
    source: str = V6,
    to: str = V6_OTHER,
    protocol: int = TCP,
    hops: int = 255,
    version: int = 6,
    size: int | None = None,
) -> bytes:
    length = len(payload) if size is None else size
    return (
        struct.pack("!IHBB", version << 28, length, protocol, hops) + ip(source) + ip(to) + payload
    )


def ext(inner: int, size: int = 0, fill: int = 0) -> bytes:
    """An extension header of 8 bytes and `size` times 8 more."""
    return bytes([inner, size]) + bytes([fill]) * (6 + size * 8)


def auth(inner: int) -> bytes:
    return bytes([inner, 4]) + bytes(22)


def frag(inner: int, offset: int = 0, more: bool = False) -> bytes:
    return struct.pack("!BBHI", inner, 0, offset * 8 | more, 1)


def icmp6(kind: int, body: bytes = b"", code: int = 0) -> bytes:
    return struct.pack("!BBH", kind, code, 0) + body


def lladdr(kind: int, address: str = OWN, size: int = 1) -> bytes:
    return bytes([kind, size]) + mac(address) + bytes(8 * (size - 1) if size else 0)


def ns(target: str = V6_OTHER, *options: bytes) -> bytes:
    return icmp6(135, bytes(4) + ip(target) + b"".join(options))


def na(target: str = V6, *options: bytes) -> bytes:
    return icmp6(136, b"\x60\0\0\0" + ip(target) + b"".join(options))


def rs(*options: bytes) -> bytes:
    return icmp6(133, bytes(4) + b"".join(options))


def ra(*options: bytes) -> bytes:
    return icmp6(134, bytes(12) + b"".join(options))


def redirect(*options: bytes) -> bytes:
    return icmp6(137, bytes(4) + ip(V6) + ip(V6_OTHER) + b"".join(options))


def e4(*args: object, **kwargs: object) -> bytes:
    return eth(IPV4, ipv4(*args, **kwargs))  # type: ignore[arg-type]


def e6(*args: object, **kwargs: object) -> bytes:
    return eth(IPV6, ipv6(*args, **kwargs))  # type: ignore[arg-type]


def nd(message: bytes, **kwargs: object) -> bytes:
    return e6(message, **{"protocol": ICMP6, **kwargs})
