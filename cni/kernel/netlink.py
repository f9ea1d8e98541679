"""A NETLINK_ROUTE socket: batches of requests, reads of what is there, errors with their cause.

The only file that imports pyroute2, which decodes what is read seldom.
"""

from __future__ import annotations

import errno as errnos
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from cni.errors import KernelRefused
from cni.kernel import rtnl_encode, tc_encode
from cni.kernel.rtnl_decode import (
    FilterInfo,
    LinkInfo,
    QdiscInfo,
    attributes,
    decode_filter,
    decode_link,
    decode_qdisc,
)
from cni.kernel.rtnl_encode import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, Message

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_DUMP_INTR, NLM_F_ACK_TLVS = 0x10, 0x200
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12
SIOCGIFINDEX = 0x8933
SIOCGIFMTU = 0x8921
HEADER = struct.Struct("=IHHII")
LARGEST = 1 << 16
TIMEOUT = 10.0


class NetlinkError(KernelRefused):
    """`errno`, `what` was asked, the kernel's own `reason` and the `position` in the batch."""

    def __init__(self, errno: int, what: str, reason: str = "", position: int = 0) -> None:
        because = f" ({reason})" if reason else ""
        super().__init__(f"cannot {what}: {os.strerror(errno)}{because}")
        self.errno = errno
        self.what = what
        self.reason = reason
        self.position = position


class NotFound(NetlinkError):
    pass


class Exists(NetlinkError):
    pass


class Busy(NetlinkError):
    pass


class Unsupported(NetlinkError):
    pass


_KINDS: dict[int, type[NetlinkError]] = {
    errnos.ENODEV: NotFound,
    errnos.ENOENT: NotFound,
    errnos.ESRCH: NotFound,
    errnos.EADDRNOTAVAIL: NotFound,
    errnos.EEXIST: Exists,
    errnos.EBUSY: Busy,
    errnos.EOPNOTSUPP: Unsupported,
    errnos.EAFNOSUPPORT: Unsupported,
    errnos.EPROTONOSUPPORT: Unsupported,
}


def refused(errno: int, what: str, reason: str = "", position: int = 0) -> NetlinkError:
    """The error of the class that belongs to `errno`."""
    if errno == errnos.EXFULL:  # BR_MAX_PORTS in net/bridge/br_private.h
        reason = reason or "the bridge has 1023 ports, the kernel's limit; name another one"
    return _KINDS.get(errno, NetlinkError)(errno, what, reason, position)


@dataclass(frozen=True)
class RouteInfo:
    """A unicast route of the kernel; `gw` is "" and the numbers are 0 where it has none."""

    dst: str
    gw: str
    oif: int
    table: int
    protocol: int
    priority: int
    mtu: int
    advmss: int
    scope: int


@dataclass(frozen=True)
class NeighbourInfo:
    ip: str
    mac: str
    index: int
    state: int


def messages_in(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence number, payload) of each message of one datagram."""
    start = 0
    while start + 16 <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, start)
        if length < 16:
            return
        yield kind, flags, sequence, data[start + 16 : start + length]
        start += (length + 3) & ~3


def answer(flags: int, payload: bytes) -> tuple[int, str]:
    """(errno or 0, the kernel's text) of an NLMSG_ERROR."""
    errno: int = -struct.unpack_from("=i", payload)[0]
    if not errno or not flags & NLM_F_ACK_TLVS:
        return errno, ""
    text = attributes(payload, 20).get(1, b"")
    return errno, text.rstrip(b"\0").decode("utf-8", "replace")


def encode(message: Message, sequence: int, flags: int = 0) -> bytes:
    body = message.body
    head = HEADER.pack(16 + len(body), message.type, message.flags | flags, sequence, 0)
    return head + body + b"\0" * (-len(body) % 4)


class Netlink:
    """Bound to the namespace that the calling thread is in now, whoever uses it later.

    Threads may share one. `timeout` in seconds is for the wait for an answer; the kernel works
    while the request is sent, and that cannot be cut short.
    """

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self.socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            self.socket.setsockopt(SOL_NETLINK, option, 1)
        self.set_timeout(timeout)
        self._lock = threading.Lock()
        self._sequence = 0

    def set_timeout(self, seconds: float) -> None:
        # settimeout() would make the socket non-blocking and cost a poll() for each receive; and
        # a zero here means for ever.
        whole, part = divmod(max(1, int(seconds * 1e6)), 1_000_000)
        raw = struct.pack("@ll", whole, part)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, raw)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def batch(self, *messages: Message) -> None:
        """All requests in one system call; a failed one does not stop the rest.

        Raises the first error, after every answer was read; its `position` names the request.
        """
        for error in self.attempt(*messages):
            if error:
                raise error

    def attempt(self, *messages: Message) -> list[NetlinkError | None]:
        """As `batch`, but returns what became of each request."""
        errors: list[NetlinkError | None] = [None] * len(messages)
        if not messages:
            return errors
        with self._lock:
            first = self.reserve(len(messages))
            last = first + len(messages) - 1
            # Answers come in order and errors come unasked: the last one's is the end of all.
            parts = [encode(m, first + i) for i, m in enumerate(messages[:-1])]
            self._send(b"".join(parts) + encode(messages[-1], last, NLM_F_ACK), messages[0])
            while True:
                for kind, flags, sequence, payload in self._receive(messages[-1].what):
                    if kind != NLMSG_ERROR or not first <= sequence <= last:
                        continue
                    errno, reason = answer(flags, payload)
                    i = sequence - first
                    if errno:
                        errors[i] = refused(errno, messages[i].what, reason, i)
                    if sequence == last:
                        return errors

    def reserve(self, count: int) -> int:
        """The first of `count` sequence numbers that no other request has."""
        first = self._sequence + 1
        self._sequence = (self._sequence + count) & 0x3FFFFFFF
        return first

    def _send(self, data: bytes, message: Message) -> None:
        try:
            self.socket.send(data)
        except OSError as error:
            raise refused(error.errno or errnos.EIO, message.what) from error

    def _receive(self, what: str) -> Iterator[tuple[int, int, int, bytes]]:
        try:
            return messages_in(self.socket.recv(LARGEST))
        except BlockingIOError as error:
            raise NetlinkError(errnos.ETIMEDOUT, what, "no answer") from error
        except OSError as error:
            raise refused(error.errno or errnos.EIO, what) from error

    def link(self, name: str | None = None, *, index: int | None = None) -> LinkInfo | None:
        """The link of that name or index, None if there is none."""
        raw = self._ask(rtnl_encode.get_link(name=name, index=index), rtnl_encode.RTM_NEWLINK)
        return decode_link(raw) if raw else None

    def root_qdisc(self, index: int) -> QdiscInfo | None:
        """None where there is none: a link without a queue, or no such link."""
        raw = self._ask(tc_encode.get_root(index), tc_encode.RTM_NEWQDISC)
        return decode_qdisc(raw) if raw else None

    def _ask(self, message: Message, kind_asked: int) -> bytes | None:
        """The payload of the one answer; an acknowledgement after it is passed over later."""
        with self._lock:
            own = self.reserve(1)
            self._send(encode(message, own), message)
            while True:
                for kind, flags, sequence, payload in self._receive(message.what):
                    if sequence != own:
                        continue
                    if kind == kind_asked:
                        return payload
                    errno, reason = answer(flags, payload)
                    error = refused(errno, message.what, reason)
                    if not errno or isinstance(error, NotFound):
                        return None
                    raise error

    def index(self, name: str) -> int | None:
        """The ifindex of a name: as if_nametoindex(3), but in the socket's namespace."""
        try:
            return self._ioctl(SIOCGIFINDEX, name)
        except NotFound:
            return None

    def mtu(self, name: str) -> int:
        """In bytes. Raises NotFound."""
        return self._ioctl(SIOCGIFMTU, name)

    def _ioctl(self, request: int, name: str) -> int:
        try:
            raw = fcntl.ioctl(self.socket, request, struct.pack("=16si20x", name.encode(), 0))
        except OSError as error:
            raise refused(error.errno or errnos.EIO, f"find link {name}") from error
        found: int = struct.unpack_from("=16si", raw)[1]
        return found

    def links(self) -> list[LinkInfo]:
        body = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
        body += rtnl_encode.u32(rtnl_encode.IFLA_EXT_MASK, rtnl_encode.RTEXT_FILTER_SKIP_STATS)
        return self._dump(rtnl_encode.RTM_GETLINK, body, "list links", decode_link)

    def qdiscs(self, index: int) -> list[QdiscInfo]:
        body = tc_encode.tc(index, 0, 0)
        return self._dump(
            tc_encode.RTM_GETQDISC, body, f"list qdiscs of link {index}", decode_qdisc, index
        )

    def filters(self, index: int, *, ingress: bool = True) -> list[FilterInfo]:
        """Those of a clsact (or, for ingress, an ingress) qdisc; none where there is no such."""
        body = tc_encode.tc(index, 0, tc_encode.INGRESS if ingress else tc_encode.EGRESS)
        what = f"list filters of link {index}"
        found = self._dump(tc_encode.RTM_GETTFILTER, body, what, decode_filter, index)
        # A classifier shows itself once with handle 0 before its filters; so do u32's tables.
        return [each for each in found if each.handle and not _is_table(each)]

    def addresses(self, index: int) -> list[str]:
        """Each as ADDRESS/PREFIX."""
        body = struct.pack("=BBBBi", 0, 0, 0, 0, index)
        what = f"list addresses of link {index}"
        found = self._dump(rtnl_encode.RTM_GETADDR, body, what, _decoder("ifaddrmsg"), index)
        return [f"{m.get('local') or m.get('address')}/{m['prefixlen']}" for m in found]

    def routes(self, index: int | None = None) -> list[RouteInfo]:
        """IPv4 and IPv6, of all tables, or only those that leave by the link `index`."""
        oif = rtnl_encode.u32(4, index) if index else b""
        found: list[RouteInfo] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0) + oif
            dump = self._dump(rtnl_encode.RTM_GETROUTE, body, "list routes", _decoder("rtmsg"))
            found += [_route(m) for m in dump if m["type"] == 1 and not m["flags"] & 0x200]
        return [each for each in found if index is None or each.oif == index]

    def neighbours(self, index: int) -> list[NeighbourInfo]:
        body = struct.pack("=BxHiHBB", 0, 0, 0, 0, 0, 0) + rtnl_encode.u32(8, index)
        what = f"list neighbours of link {index}"
        found = self._dump(rtnl_encode.RTM_GETNEIGH, body, what, _decoder("ndmsg"))
        # The reverse of a NOARP entry says nothing that anyone set.
        kept = [m for m in found if m["ifindex"] == index and m["state"] != 0x40]
        return [
            NeighbourInfo(m.get("dst") or "", m.get("lladdr") or "", index, m["state"])
            for m in kept
        ]

    def _dump(
        self,
        kind: int,
        body: bytes,
        what: str,
        decode: Callable[[bytes], Any],
        index: int | None = None,
    ) -> list[Any]:
        """All that the kernel answers, [] for a link that is not there.

        `index` keeps one link's: a dump of qdiscs is of all links, whatever was asked.
        """
        message = Message(kind, NLM_F_REQUEST | NLM_F_DUMP, body, what)
        with self._lock:
            for _ in range(10):
                found, whole = self._dump_once(message)
                if whole:
                    break
            else:
                raise NetlinkError(errnos.EINTR, what, "it changed during each of ten reads")
        chosen = [p for p in found if index is None or struct.unpack_from("=4xi", p)[0] == index]
        return [decode(payload) for payload in chosen]

    def _dump_once(self, message: Message) -> tuple[list[bytes], bool]:
        own = self.reserve(1)
        self._send(encode(message, own), message)
        found: list[bytes] = []
        whole = True
        while True:
            for kind, flags, sequence, payload in self._receive(message.what):
                if sequence != own:
                    continue
                whole = whole and not flags & NLM_F_DUMP_INTR
                if kind not in (NLMSG_DONE, NLMSG_ERROR):
                    found.append(payload)
                    continue
                errno, reason = answer(flags if kind == NLMSG_ERROR else 0, payload)
                if errno and not isinstance(refused(errno, ""), NotFound):
                    raise refused(errno, message.what, reason)
                return found, whole


def _is_table(found: FilterInfo) -> bool:
    return found.kind == "u32" and not found.handle & 0xFFF


@cache
def _decoder(name: str) -> Callable[[bytes], Any]:
    # Importing pyroute2 costs 150 ms, which vmlinkctl and the hook should not pay.
    from importlib import import_module

    kind = getattr(import_module(f"pyroute2.netlink.rtnl.{name}"), name)

    def decode(payload: bytes) -> Any:
        message = kind(HEADER.pack(16 + len(payload), 0, 0, 0, 0) + payload)
        message.decode()
        return message

    return decode


def _route(message: Any) -> RouteInfo:
    everything = "0.0.0.0" if message["family"] == socket.AF_INET else "::"
    metrics = message.get("metrics")
    return RouteInfo(
        dst=f"{message.get('dst') or everything}/{message['dst_len']}",
        gw=message.get("gateway") or "",
        oif=message.get("oif") or 0,
        table=message.get_attr("RTA_TABLE") or message["table"],
        protocol=message["proto"],
        priority=message.get("priority") or 0,
        mtu=(metrics.get("mtu") or 0) if metrics else 0,
        advmss=(metrics.get("advmss") or 0) if metrics else 0,
        scope=message["scope"],
    )
