"""Deletion of links that returns when their names are free, before the kernel has finished.

RTM_DELLINK keeps its sender for 14 to 24 ms in an RCU barrier. Long before that the link is gone
from all lists and its name is free, which the kernel announces to RTNLGRP_LINK. So a thread sends
the request, and the caller waits for the announcement. Both use one socket, on which announcements
and answers keep their order.

Sources: rtnetlink(7); unregister_netdevice_many() and netdev_run_todo() in net/core/dev.c.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno as errnos
import logging
import queue
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Collection

from cni.kernel.netlink import (
    LARGEST,
    NETLINK_ADD_MEMBERSHIP,
    SOL_NETLINK,
    Netlink,
    NetlinkError,
    NotFound,
    refused,
)
from cni.kernel.netlink_message import (
    NLM_F_ACK,
    NLMSG_ERROR,
    Message,
    encode,
    error_in,
    messages_in,
)
from cni.kernel.netns import Namespace
from cni.kernel.rtnl_encode import RTM_DELLINK, RTM_NEWLINK, del_link

NETLINK_DROP_MEMBERSHIP, RTNLGRP_LINK = 2, 1
RECEIVE_BUFFER = 1 << 20  # bytes
SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_RCVBUFFORCE = 26, 27, 33
# Classic BPF (linux/filter.h) that drops the announcements of changes: each link is changed before
# it goes, and each announcement would wake the caller. BPF loads values in network byte order.
_NO_CHANGES = (
    (0x28, 0, 0, 4),  # A = nlmsg_type
    (0x15, 0, 1, socket.htons(RTM_NEWLINK)),  # unless A is this, skip one instruction
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # accept
)

log = logging.getLogger(__name__)


class LinkDeleter:
    """Threads that delete links; a process needs one LinkDeleter.

    `threads` is how many deletions can be in the kernel at once; further ones wait.
    """

    def __init__(self, threads: int = 8) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[_Job] = deque()
        # Each thread has its own queue: from a shared one, a put would wake several.
        self._queues: list[_Jobs] = [queue.SimpleQueue() for _ in range(threads)]
        self._idle = list(self._queues)
        self._threads = [
            threading.Thread(
                target=self._work, args=(jobs,), name=f"vmlink-delete-{i}", daemon=True
            )
            for i, jobs in enumerate(self._queues)
        ]
        for thread in self._threads:
            thread.start()

    def delete(
        self, ns: Namespace, group: int | None, indexes: Collection[int], timeout: float
    ) -> None:
        """Delete the links `indexes` of the namespace `ns`; one that is not there is no error.

        Returns when their names are free. With a `group` one request deletes all links of that
        group, and `indexes` are those to wait for; one that is of another group stays. Without,
        there is a request for each. Raises NetlinkError, with ETIMEDOUT after `timeout` seconds;
        the deletion still goes on then.
        """
        if not indexes:
            return
        with ns.entered():
            netlink = Netlink(timeout)
        if group:
            requests = [(del_link(group=group), {*indexes})]
        else:
            requests = [(del_link(index), {index}) for index in indexes]
        deletion = _Deletion(netlink, requests)
        for data in deletion.encoded:
            self._hand_over((deletion, data))
        try:
            deletion.wait(time.monotonic() + timeout)
        except _Overflow:
            deletion.wait_for_requests(timeout)
        finally:
            deletion.release()

    def _hand_over(self, job: _Job) -> None:
        with self._guard:
            if self._idle:
                self._idle.pop().put(job)
            else:
                self._waiting.append(job)

    def _work(self, jobs: _Jobs) -> None:
        while job := jobs.get():
            while job:
                deletion, data = job
                deletion.send(data)
                job = self._next(jobs)

    def _next(self, jobs: _Jobs) -> _Job | None:
        with self._guard:
            if self._waiting:
                return self._waiting.popleft()
            self._idle.append(jobs)
            return None

    def close(self) -> None:
        """Finish the deletions that were asked for, and end the threads."""
        for jobs in self._queues:
            jobs.put(None)
        for thread in self._threads:
            thread.join()


class _Overflow(Exception):
    """The socket's buffer was full and messages were lost, perhaps those waited for."""


def _drop_changes(sock: socket.socket) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *i) for i in _NO_CHANGES))
    program = struct.pack("@HP", len(_NO_CHANGES), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


class _Deletion:
    """Requests under way, on a socket of their own that its last user closes."""

    def __init__(self, netlink: Netlink, requests: list[tuple[Message, set[int]]]) -> None:
        self._netlink = netlink
        first = netlink.reserve(len(requests))
        self._open = {first + i: request for i, request in enumerate(requests)}
        self.encoded = [encode(m, seq, NLM_F_ACK) for seq, (m, _) in self._open.items()]
        self._left = {index for _, group in requests for index in group}
        self._what = ", ".join(message.what for message, _ in requests)
        self._users = 1 + len(requests)
        self._unsent = len(requests)
        self._changed = threading.Condition()
        sock = netlink.socket
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        _drop_changes(sock)
        sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_LINK)

    def send(self, data: bytes) -> None:
        try:
            self._netlink.socket.send(data)
        except OSError:
            log.exception("cannot %s", self._what)
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
                # A bridge announces the end of a port by the same message, with AF_BRIDGE.
                if family == socket.AF_UNSPEC:
                    self._left.discard(index)
            elif kind == NLMSG_ERROR and sequence in self._open:
                message, indexes = self._open.pop(sequence)
                errno, reason = error_in(flags, payload)
                error = refused(errno, message.what, reason)
                if errno and not isinstance(error, NotFound):
                    raise error
                self._left -= indexes

    def wait_for_requests(self, timeout: float) -> None:
        """Wait until the kernel has finished each request, then look whether the links are gone."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._unsent, timeout):
                raise NetlinkError(errnos.ETIMEDOUT, self._what)
        self._netlink.socket.setsockopt(SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, RTNLGRP_LINK)
        self._netlink.socket.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
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
                raise NetlinkError(errnos.EIO, self._what, f"link {index} is still there")


_Job = tuple[_Deletion, bytes]
_Jobs = queue.SimpleQueue[_Job | None]
