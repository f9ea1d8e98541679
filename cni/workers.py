"""Threads that wait on one listening socket; the kernel wakes one for each connection."""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

from cni.errors import VmlinkError

log = logging.getLogger("vmlink")

_ACCEPT_PAUSE = 0.1


class Workers:
    """`serve` gets each connection, which is closed after it; it raises nothing. What is in flight
    at the end is waited for, `patience` seconds where somebody else's answer is."""

    def __init__(
        self,
        listener: socket.socket,
        count: int,
        serve: Callable[[socket.socket], None],
        name: str = "worker",
        patience: float | None = None,
    ) -> None:
        self._patience = patience
        self._listener = listener
        self._serve = serve
        self._stop_read, self._stop_write = os.pipe()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True)
            for n in range(count)
        ]
        listener.setblocking(False)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take no further connection."""
        os.close(self._stop_write)

    def join(self) -> None:
        """Wait, after `stop`, for what is in flight."""
        end = None if self._patience is None else time.monotonic() + self._patience
        for thread in self._threads:
            thread.join(None if end is None else max(end - time.monotonic(), 0))

    def _work(self) -> None:
        with select.epoll() as epoll:
            # Without EPOLLEXCLUSIVE each connection would wake every thread.
            epoll.register(self._listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            epoll.register(self._stop_read, select.EPOLLHUP)
            while True:
                events = epoll.poll()
                if any(fd == self._stop_read for fd, _ in events):
                    return
                if conn := self._accept():
                    with conn:
                        self._serve(conn)

    def _accept(self) -> socket.socket | None:
        try:
            return self._listener.accept()[0]
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as e:  # no descriptor or memory is left; the caller stays in the queue
            log.error("cannot accept a connection: %s", e)
            time.sleep(_ACCEPT_PAUSE)
            return None


def refuse_strangers(conn: socket.socket) -> None:
    """Raises VmlinkError unless the peer is root, or runs as we do."""
    raw = conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", raw)
    if uid not in (0, os.geteuid()):
        raise VmlinkError(f"process {pid} of user {uid} may not talk to vmlinkd")


def hang_up(conn: socket.socket) -> Callable[[], bool]:
    """Tells whether the peer has gone."""
    poll = select.poll()
    poll.register(conn, select.POLLRDHUP)
    return lambda: bool(poll.poll(0))
