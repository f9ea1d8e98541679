"""A netlink socket: batches of requests, reads of what is there, errors with their cause.

Sources: rtnetlink(7), netlink(7), linux/genetlink.h.
"""

from __future__ import annotations

import errno as errnos
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from cni.errors import KernelRefused
from cni.kernel import bridge_vlans, rtnl_encode, rtnl_queries, tc_encode
from cni.kernel.bridge_vlans import VlanRange
from cni.kernel.link_index import index_by
from cni.kernel.netlink_message import (
    NLM_F_ACK,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    Message,
    Received,
    encode,
    error_in,
    messages_in,
)
from cni.kernel.pyroute2_decode import (
    NeighbourInfo,
    decode_address,
    decode_neighbour,
    decode_routes,
)
from cni.kernel.pyroute2_decode import RouteInfo as RouteInfo
from cni.kernel.rtnl_decode import (
    FilterInfo,
    LinkInfo,
    QdiscInfo,
    decode_filter,
    decode_link,
    decode_qdisc,
)

SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12
LARGEST = 1 << 16  # bytes for one recv(2); the kernel sends at most 32 KiB of a dump at once
TIMEOUT = 10.0  # seconds
_DUMPS = 10  # tries of a dump that changes while it is read
T = TypeVar("T")


class NetlinkError(KernelRefused):
    """A refused request: its `errno`, `what` was asked, and the kernel's own `reason` or "".

    `position` is its place in the batch, from 0.
    """

    def __init__(self, errno: int, what: str, reason: str = "", position: int = 0) -> None:
        because = f" ({reason})" if reason else ""
        super().__init__(f"cannot {what}: {os.strerror(errno)}{because}")
        self.errno = errno
        self.what = what
        self.reason = reason
        self.position = position


class NotFound(NetlinkError):
    """What the request is about is not there: ENODEV, ENOENT, ESRCH, EADDRNOTAVAIL."""


class Exists(NetlinkError):
    """What the request makes is there already: EEXIST."""


class Busy(NetlinkError):
    """What the request is about is in use: EBUSY."""


class Unsupported(NetlinkError):
    """The kernel has no such feature: EOPNOTSUPP, EAFNOSUPPORT, EPROTONOSUPPORT."""


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
    """Make the error of the class that belongs to `errno`; the arguments are NetlinkError's."""
    if errno == errnos.EXFULL:  # BR_MAX_PORTS in net/bridge/br_private.h
        reason = reason or "the bridge has 1023 ports, the kernel's limit; use another bridge"
    return _KINDS.get(errno, NetlinkError)(errno, what, reason, position)


class Netlink:
    """A socket in the namespace that the calling thread is in now, whoever uses it later.

    Threads may share one. `timeout`, in seconds, is for the wait for an answer: the kernel does the
    work during send(2), which cannot be interrupted. `protocol` is one of netlink(7)'s families.
    All methods raise NetlinkError.
    """

    def __init__(self, timeout: float = TIMEOUT, protocol: int = socket.NETLINK_ROUTE) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self.socket = socket.socket(socket.AF_NETLINK, kind, protocol)
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            self.socket.setsockopt(SOL_NETLINK, option, 1)
        self.set_timeout(timeout)
        self._lock = threading.Lock()
        self._index_lock = threading.Lock()  # of its own: it does not wait for a batch's answer
        self._sequence = 0

    def set_timeout(self, seconds: float) -> None:
        """Limit each wait for an answer, to a microsecond at least."""
        # settimeout() would make the socket non-blocking and cost a poll() for each receive. In
        # SO_RCVTIMEO 0 means no limit.
        whole, part = divmod(max(1, int(seconds * 1e6)), 1_000_000)
        raw = struct.pack("@ll", whole, part)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, raw)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def batch(self, *messages: Message) -> None:
        """Send all requests by one system call; one that fails does not stop the rest.

        Raises the first error, after all answers have been read; its `position` is the request's.
        """
        for error in self.attempt(*messages):
            if error:
                raise error

    def attempt(self, *messages: Message) -> list[NetlinkError | None]:
        """Do as `batch`, but return the error of each request, None for one that succeeded."""
        errors: list[NetlinkError | None] = [None] * len(messages)
        if not messages:
            return errors
        with self._lock:
            first = self.reserve(len(messages))
            last = first + len(messages) - 1
            # An error is reported unasked and in order, so only the last request needs an ACK: its
            # answer is the end of all.
            parts = [encode(m, first + i) for i, m in enumerate(messages[:-1])]
            self._send(b"".join(parts) + encode(messages[-1], last, NLM_F_ACK), messages[0])
            while True:
                for each in self._receive(messages[-1].what):
                    if each.type != NLMSG_ERROR or not first <= each.sequence <= last:
                        continue
                    errno, reason = error_in(each.flags, each.payload)
                    i = each.sequence - first
                    if errno:
                        errors[i] = refused(errno, messages[i].what, reason, i)
                    if each.sequence == last:
                        return errors

    def reserve(self, count: int) -> int:
        """Take `count` sequence numbers that no other request has; returns the first."""
        first = self._sequence + 1
        self._sequence = (self._sequence + count) & 0x3FFFFFFF
        return first

    def link(self, name: str | None = None, *, index: int | None = None) -> LinkInfo | None:
        """The link with that name or index, None if there is none."""
        raw = self.ask(rtnl_queries.get_link(name=name, index=index), rtnl_encode.RTM_NEWLINK)
        return decode_link(raw) if raw else None

    def root_qdisc(self, index: int) -> QdiscInfo | None:
        """The root qdisc of a link; None for a link without a queue, or no such link."""
        raw = self.ask(tc_encode.get_root(index), tc_encode.RTM_NEWQDISC)
        return decode_qdisc(raw) if raw else None

    def index(self, name: str) -> int | None:
        """The ifindex of a name in the socket's namespace, None for no such link."""
        try:
            with self._index_lock:
                return index_by(self.socket, name)
        except PermissionError:  # without CAP_NET_RAW; before Linux 5.7 the first time, too
            link = self.link(name)
            return link.index if link else None
        except OSError as error:
            raise refused(error.errno or errnos.EIO, f"find link {name}") from error

    def links(self) -> list[LinkInfo]:
        """All links of the namespace."""
        return self._dump(rtnl_queries.dump_links(), decode_link)

    def vlans(self, index: int) -> list[VlanRange]:
        """The VLANs of a bridge's port, in their order (Linux 5.6)."""
        dump = self._dump(bridge_vlans.dump_vlans(index), bridge_vlans.decode_vlans, index)
        return [each for entries in dump for each in entries]

    def filters(self, index: int, *, ingress: bool = True) -> list[FilterInfo]:
        """The filters of a link's clsact qdisc, or of its ingress qdisc; [] without a qdisc."""
        message = tc_encode.dump_filters(index, ingress=ingress)
        dump = self._dump(message, decode_filter, index)
        # A classifier is listed once with handle 0 before its filters; so are u32's hash tables.
        return [each for each in dump if each.handle and not each.is_u32_table]

    def addresses(self, index: int) -> list[str]:
        """The addresses of a link, each as ADDRESS/PREFIX."""
        return self._dump(rtnl_queries.dump_addresses(index), decode_address, index)

    def routes(self, index: int | None = None) -> list[RouteInfo]:
        """The unicast routes of all tables, IPv4 and IPv6; with `index` those that leave by it."""
        both = [rtnl_queries.dump_routes(f, index) for f in (socket.AF_INET, socket.AF_INET6)]
        messages = [routes for dump in both for routes in self._dump(dump, decode_routes)]
        return [route for routes in messages for route in routes if index in (None, route.oif)]

    def neighbours(self, index: int) -> list[NeighbourInfo]:
        """The neighbours of a link, IPv4 and IPv6."""
        entries = self._dump(rtnl_queries.dump_neighbours(index), decode_neighbour)
        return [each[1] for each in entries if each and each[0] == index]

    def _send(self, data: bytes, message: Message) -> None:
        try:
            self.socket.send(data)
        except OSError as error:
            raise refused(error.errno or errnos.EIO, message.what) from error

    def _receive(self, what: str) -> Iterator[Received]:
        try:
            return messages_in(self.socket.recv(LARGEST))
        except BlockingIOError as error:
            raise NetlinkError(errnos.ETIMEDOUT, what, "no answer") from error
        except OSError as error:
            raise refused(error.errno or errnos.EIO, what) from error

    def ask(self, message: Message, answer: int) -> bytes | None:
        """The payload of the one answer, of the type `answer`; None for what is not there."""
        with self._lock:
            own = self.reserve(1)
            self._send(encode(message, own), message)
            while True:
                for each in self._receive(message.what):
                    if each.sequence != own:
                        continue
                    if each.type == answer:
                        return each.payload
                    errno, reason = error_in(each.flags, each.payload)
                    error = refused(errno, message.what, reason)
                    if not errno or isinstance(error, NotFound):
                        return None
                    raise error

    def _dump(
        self, message: Message, decode: Callable[[bytes], T], index: int | None = None
    ) -> list[T]:
        """Decode all that the kernel lists; [] for a link that is not there.

        `index` keeps one link's, where the kernel lists those of all links whatever it is asked.
        """
        with self._lock:
            for _ in range(_DUMPS):
                payloads, consistent = self._dump_once(message)
                if consistent:
                    break
            else:
                reason = f"it changed during each of {_DUMPS} reads; try again"
                raise NetlinkError(errnos.EINTR, message.what, reason)
        return [
            decode(payload)
            for payload in payloads
            if index is None or struct.unpack_from("=4xi", payload)[0] == index
        ]

    def _dump_once(self, message: Message) -> tuple[list[bytes], bool]:
        own = self.reserve(1)
        self._send(encode(message, own), message)
        payloads: list[bytes] = []
        consistent = True
        while True:
            for each in self._receive(message.what):
                if each.sequence != own:
                    continue
                consistent = consistent and not each.flags & NLM_F_DUMP_INTR
                if each.type not in (NLMSG_DONE, NLMSG_ERROR):
                    payloads.append(each.payload)
                    continue
                errno, reason = error_in(
                    each.flags if each.type == NLMSG_ERROR else 0, each.payload
                )
                error = refused(errno, message.what, reason)
                if errno and not isinstance(error, NotFound):
                    raise error
                return payloads, consistent
