"""Netlink messages as bytes: headers, attributes, and the kernel's answers. Pure.

Sources: netlink(7), linux/netlink.h, Documentation/userspace-api/netlink/intro.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

NLM_F_REQUEST, NLM_F_ACK, NLM_F_ECHO = 0x1, 0x4, 0x8
NLM_F_DUMP = 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLM_F_DUMP_INTR, NLM_F_ACK_TLVS = 0x10, 0x200  # in answers
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_F_NESTED = 0x8000
_NLMSGERR_ATTR_MSG = 1
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


class Message(NamedTuple):
    """A request without its nlmsghdr; `what` completes "cannot ..." in an error."""

    type: int
    flags: int
    body: bytes
    what: str


class Received(NamedTuple):
    """A message of the kernel; `sequence` is that of the request, or 0 in a notification."""

    type: int
    flags: int
    sequence: int
    payload: bytes


def attr(kind: int, payload: bytes) -> bytes:
    """Encode one struct nlattr, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def u32(kind: int, value: int) -> bytes:
    """Encode an attribute with an unsigned number of 32 bits, in the order of the host."""
    return struct.pack("=HHI", 8, kind, value)


def text(kind: int, value: str) -> bytes:
    """Encode an attribute with a string, which ends with NUL."""
    return attr(kind, value.encode() + b"\0")


def attributes(data: bytes, start: int = 0) -> dict[int, bytes]:
    """Decode attributes to {type: payload}; of a type that comes twice the last one counts."""
    found: dict[int, bytes] = {}
    end = len(data)
    while start + 4 <= end:  # and not `each_attribute`: a link has some 60 of them
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[start + 4 : start + length]
        start += (length + 3) & ~3
    return found


def each_attribute(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Decode attributes to pairs of type and payload.

    The flags NLA_F_NESTED and NLA_F_NET_BYTEORDER are taken off the types.
    """
    end = len(data)
    while start + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4:
            break
        yield kind & 0x3FFF, data[start + 4 : start + length]
        start += (length + 3) & ~3


def encode(message: Message, sequence: int, flags: int = 0) -> bytes:
    """Encode a request with its nlmsghdr; `flags` are added to its own."""
    body = message.body
    head = _HEADER.pack(16 + len(body), message.type, message.flags | flags, sequence, 0)
    return head + body + b"\0" * (-len(body) % 4)


def with_header(payload: bytes) -> bytes:
    """A payload behind an empty nlmsghdr, as pyroute2 decodes it."""
    return _HEADER.pack(16 + len(payload), 0, 0, 0, 0) + payload


def messages_in(data: bytes) -> Iterator[Received]:
    """Split what one recv(2) returned into its messages."""
    start = 0
    while start + 16 <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, start)
        if length < 16:
            return
        yield Received(kind, flags, sequence, data[start + 16 : start + length])
        start += (length + 3) & ~3


def error_in(flags: int, payload: bytes) -> tuple[int, str]:
    """Decode an NLMSG_ERROR: the errno, 0 for success, and the kernel's own text or ""."""
    errno: int = -struct.unpack_from("=i", payload)[0]
    if not errno or not flags & NLM_F_ACK_TLVS:
        return errno, ""
    reason = attributes(payload, 20).get(_NLMSGERR_ATTR_MSG, b"")
    return errno, reason.rstrip(b"\0").decode("utf-8", "replace")
