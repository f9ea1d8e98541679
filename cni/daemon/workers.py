"""Threads that serve a listening socket; the kernel wakes one for each connection."""

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

_ACCEPT_PAUSE = 0.1  # seconds
_PATIENCE = 1.0  # seconds
_MOST = 1024  # threads


class Workers:
    """`count` threads, each of which passes one connection at a time to `serve`.

    `serve` must not raise; the connection is closed after it. At the end, requests under way are
    waited for: `patience` seconds, or as long as it takes when that is None.

    Requests that all wait for the same thing, such as an API server, must not keep others waiting.
    So when no thread has been free for a second and fewer than `count` requests were finished in
    it, `count` more threads start; a thread that is not needed any more ends.
    """

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
        self._count = count
        self._serve = serve
        self._name = name
        self._stop_read, self._stop_write = os.pipe()
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # for what follows
        self._threads: list[threading.Thread] = []
        self._free = self._served = 0
        self._watched = False
        listener.setblocking(False)

    def start(self) -> None:
        """Start the threads."""
        with self._lock:
            self._more()

    def stop(self) -> None:
        """Accept no more connections. Call it once."""
        self._stopping.set()
        os.close(self._stop_write)

    def join(self) -> None:
        """After `stop`, wait for the requests under way."""
        end = None if self._patience is None else time.monotonic() + self._patience
        for thread in self._threads:
            thread.join(None if end is None else max(end - time.monotonic(), 0))

    def _more(self) -> None:
        for n in range(self._count):
            thread = threading.Thread(target=self._work, name=f"{self._name}-{n}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._free += self._count

    def _work(self) -> None:
        with select.epoll() as epoll:
            # Without EPOLLEXCLUSIVE each connection would wake every thread.
            epoll.register(self._listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            epoll.register(self._stop_read, select.EPOLLHUP)
            needed = True
            while needed:
                events = epoll.poll()
                if any(fd == self._stop_read for fd, _ in events):
                    return
                if conn := self._accept():
                    self._begin()
                    with conn:
                        self._serve(conn)
                    needed = self._end()

    def _begin(self) -> None:
        with self._lock:
            self._free -= 1
            if not self._free and not self._watched:
                self._watched = True
                name = f"{self._name}-watch"
                threading.Thread(target=self._watch, name=name, daemon=True).start()

    def _end(self) -> bool:
        """Whether the thread is still needed."""
        with self._lock:
            needed = self._free < self._count
            self._free += needed
            self._served += 1
            return needed

    def _watch(self) -> None:
        """Add threads each second in which too few requests end, until a thread is free.

        A thread that ends its request takes the next one from the queue at once, so that none is
        free although the node makes progress: that alone is no reason for more threads.
        """
        before = self._served
        while not self._stopping.wait(_PATIENCE):
            with self._lock:
                if self._free or self._stopping.is_set():
                    self._watched = False
                    return
                if self._served - before < self._count and self._has_room():
                    log.info("no %s was free for %g s; starting more", self._name, _PATIENCE)
                    self._more()
                before = self._served

    def _has_room(self) -> bool:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        return len(self._threads) < _MOST

    def _accept(self) -> socket.socket | None:
        try:
            return self._listener.accept()[0]
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as e:  # out of descriptors or memory; the caller stays in the queue
            log.warning("cannot accept a connection, trying again: %s", e)
            time.sleep(_ACCEPT_PAUSE)
            return None


def refuse_strangers(conn: socket.socket) -> None:
    """Raise VmlinkError unless the peer is root, or vmlinkd's own user (unix(7), SO_PEERCRED)."""
    raw = conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", raw)
    if uid not in (0, os.geteuid()):
        raise VmlinkError(f"process {pid} of user {uid} may not talk to vmlinkd; be root")


def peer_gone(conn: socket.socket) -> Callable[[], bool]:
    """Return a function that tells whether the peer has hung up (poll(2), POLLRDHUP)."""
    poll = select.poll()
    poll.register(conn, select.POLLRDHUP)
    return lambda: bool(poll.poll(0))
