"""Deletes links and returns when they are gone, not when the kernel has swept up.

RTM_DELLINK blocks who sends it in an RCU barrier, 14 to 24 ms, long after the link is out of
all lists and its name free, which is when the kernel announces it. So a thread here sends, the
caller listens; both on one socket, where announcements and answers come in one order.
"""

from __future__ import annotations

import contextlib
import errno as errnos
import logging
import queue
import socket
import struct
import threading
import time
from collections.abc import Sequence

from cni.netlink import (
    LARGEST,
    NETLINK_ADD_MEMBERSHIP,
    NLMSG_ERROR,
    SOL_NETLINK,
    Netlink,
    NetlinkError,
    NotFound,
    answer,
    encode,
    messages_in,
    refused,
)
from cni.netns import Namespace
from cni.rtmsg import NLM_F_ACK, RTM_DELLINK, Message, del_link

NETLINK_DROP_MEMBERSHIP, RTNLGRP_LINK = 2, 1
RECEIVE_BUFFER = 1 << 20
SO_RCVBUFFORCE = 33

log = logging.getLogger(__name__)


class Reaper:
    """Make one for a process. `threads` bounds the deletions that are in the kernel at once."""

    def __init__(self, threads: int = 8) -> None:
        self._jobs: queue.SimpleQueue[tuple[_Deletion, bytes] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"vmlink-reaper-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def delete(
        self, ns: Namespace, group: int | None, indexes: Sequence[int], timeout: float
    ) -> None:
        """Returns when all `indexes` of `ns` are gone and their names free; absent is gone.

        Those in `group` go by one request, which takes every link of that group along; the rest
        one by one. Raises the kernel's error, or ETIMEDOUT after `timeout` seconds while the
        deletion goes on.
        """
        with ns.entered():
            netlink = Netlink(timeout)
        try:
            requests = _requests(netlink, group, indexes)
        except BaseException:
            netlink.close()
            raise
        deletion = _Deletion(netlink, requests)
        for data in deletion.encoded:
            self._jobs.put((deletion, data))
        try:
            deletion.wait(time.monotonic() + timeout)
        except _Overflow:
            deletion.wait_for_requests(timeout)
        finally:
            deletion.release()

    def _work(self) -> None:
        while job := self._jobs.get():
            deletion, data = job
            deletion.send(data)

    def close(self) -> None:
        """Returns when all that was handed over is done."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()


class _Overflow(Exception):
    """The socket lost messages, perhaps ours."""


def _requests(
    netlink: Netlink, group: int | None, indexes: Sequence[int]
) -> list[tuple[Message, set[int]]]:
    """Which request takes which links. A link that is not there has none: no one announces it."""
    found = [link for link in (netlink.link(index=i) for i in indexes) if link]
    together = {link.index for link in found if group and link.group == group}
    alone = [link.index for link in found if link.index not in together]
    requests = [(del_link(group=group), together)] if together else []
    return requests + [(del_link(index), {index}) for index in alone]


class _Deletion:
    """Requests under way on a socket of their own, which the last user closes."""

    def __init__(self, netlink: Netlink, requests: list[tuple[Message, set[int]]]) -> None:
        self._netlink = netlink
        first = netlink.reserve(len(requests)) if requests else 0
        self._open = {first + i: request for i, request in enumerate(requests)}
        self.encoded = [encode(m, seq, NLM_F_ACK) for seq, (m, _) in self._open.items()]
        self._left = {index for _, group in requests for index in group}
        self._what = ", ".join(message.what for message, _ in requests)
        self._users = 1 + len(requests)
        self._unsent = len(requests)
        self._changed = threading.Condition()
        if requests:
            sock = netlink.socket
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
            sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_LINK)

    def send(self, data: bytes) -> None:
        try:
            self._netlink.socket.send(data)
        except OSError as error:
            log.error("cannot %s: %s", self._what, error)
        with self._changed:
            self._unsent -= 1
            self._changed.notify_all()
        self.release()

    def release(self) -> None:
        with self._changed:
            self._users -= 1
            last = self._users == 0
        if last:
            self._netlink.close()

    def wait(self, deadline: float) -> None:
        while self._left:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise NetlinkError(errnos.ETIMEDOUT, self._what)
            self._netlink.set_timeout(remaining)
            with contextlib.suppress(BlockingIOError):
                self._read(self._receive())

    def _receive(self) -> bytes:
        try:
            return self._netlink.socket.recv(LARGEST)
        except OSError as error:
            if error.errno == errnos.ENOBUFS:
                raise _Overflow from error
            raise

    def _read(self, data: bytes) -> None:
        for kind, flags, sequence, payload in messages_in(data):
            if kind == RTM_DELLINK:
                family, index = struct.unpack_from("=BxHi", payload)[::2]
                # A bridge announces the end of a port in the same words, with its own family.
                if family == socket.AF_UNSPEC:
                    self._left.discard(index)
            elif kind == NLMSG_ERROR and sequence in self._open:
                message, indexes = self._open.pop(sequence)
                errno, reason = answer(flags, payload)
                error = refused(errno, message.what, reason)
                if errno and not isinstance(error, NotFound):
                    raise error
                self._left -= indexes

    def wait_for_requests(self, timeout: float) -> None:
        """The slow way: until the kernel has come back from each request, then look."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._unsent, timeout):
                raise NetlinkError(errnos.ETIMEDOUT, self._what)
        self._netlink.socket.setsockopt(SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, RTNLGRP_LINK)
        self._netlink.socket.setblocking(False)
        drained = False
        while not drained:
            try:
                self._read(self._receive())
            except BlockingIOError:
                drained = True
            except _Overflow:
                continue
        self._netlink.socket.setblocking(True)
        for index in self._left:
            if self._netlink.link(index=index):
                raise NetlinkError(errnos.EIO, self._what, f"link {index} is there, answer lost")
