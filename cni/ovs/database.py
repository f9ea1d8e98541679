"""The door to Open vSwitch's database: operations in, a view out, from any thread.

The connection itself, with python-ovs, is loaded when it is first needed: see idl.py.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from cni.config.settings import Ovs
from cni.errors import BadConfig, DeadlineExceeded, TryAgain

if TYPE_CHECKING:
    from cni.ovs.connection import Tables

Operations = list[dict[str, Any]]  # RFC 7047, section 5.2


@dataclass(frozen=True)
class View:
    """`bridges` maps names to datapath types, `external_ids` are Open_vSwitch's; the rest is how
    ovs-vswitchd runs."""

    connected: bool = False
    bridges: Mapping[str, str] | None = None  # None before the first connection
    dpdk: bool = False
    userspace_tso: bool = False
    vhost_directory: str = ""  # below ovs-vswitchd's run directory
    external_ids: Mapping[str, str] = field(default_factory=dict)


class Operation(Protocol):
    """Something to be written. The methods run in the connection's thread."""

    @property
    def interface(self) -> str:
        """The name of the Interface whose changes may settle it; "" for none."""
        ...

    def compose(self, tables: Tables, again: bool) -> Operations:
        """What to send, perhaps nothing. `again`: a former try may have been committed or not.
        Raises VmlinkError, which is the caller's answer then."""
        ...

    def settled(self, tables: Tables) -> bool:
        """Looked at after the commit and after each change of `interface`. Raises VmlinkError."""
        ...


class Pending:
    """An operation on its way."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.again = False
        self.abandoned = False
        self.future: Future[None] = Future()

    def wait(self, seconds: float, what: str) -> None:
        """Until it is settled, for so many seconds at most.

        Raises what it was settled with, or DeadlineExceeded: it is abandoned then and not tried
        again, but what was sent may have been committed.
        """
        try:
            self.future.result(max(seconds, 0))
        except TimeoutError as e:
            self.abandon()
            raise DeadlineExceeded(what) from e
        except CancelledError as e:
            raise TryAgain("vmlinkd is stopping") from e

    def abandon(self) -> bool:
        """Nobody waits any more. True if it was never sent, so that there is nothing to undo."""
        self.abandoned = True
        return self.future.cancel()


class Database:
    """Of one vmlinkd, whose rows are marked with `owner`. `first` is submitted before all else."""

    def __init__(self, settings: Ovs, owner: str, first: Operation | None = None) -> None:
        self.settings = settings
        self.owner = owner
        self.stopping = False
        self._view = View()
        self._queue: deque[Pending] = deque([Pending(first)] if first else [])
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self.on_view: Callable[[], None] = lambda: None  # there is a new one
        self.wake_fd, self._wake_write = os.pipe()
        for fd in (self.wake_fd, self._wake_write):
            os.set_blocking(fd, False)

    def may_be_there(self) -> bool:
        """Whether it is worth a try: a socket that exists, or a server elsewhere."""
        kind, _, path = self.settings.db.partition(":")
        return kind != "unix" or os.path.exists(path)

    def start(self) -> None:
        """Connect in the background, if that has not begun."""
        with self._lock:
            if self._thread or self.stopping:
                return
            from cni.ovs.connection import Connection

            name, run = "vmlink-ovsdb", Connection(self).run
            self._thread = threading.Thread(target=run, name=name, daemon=True)
            self._thread.start()

    def submit(self, operation: Operation) -> Pending:
        """Have it written as soon as can be, with what else is waiting then."""
        self.start()
        pending = Pending(operation)
        with self._lock:
            self._queue.append(pending)
        self._wake()
        return pending

    def look(self, seconds: float) -> View:
        """The newest view. Raises TryAgain when there has been no connection after `seconds`."""
        self.start()
        with self._changed:
            if not self._changed.wait_for(lambda: self._view.bridges is not None, max(seconds, 0)):
                raise TryAgain(self.away())
            return self._view

    def vhost_directory(self) -> str:
        """Where ovs-vswitchd makes the sockets of vhost-user: its run directory, which is that of
        ovsdb-server, or one below it. Raises BadConfig when the server is elsewhere."""
        kind, _, path = self.settings.db.partition(":")
        if kind != "unix":
            raise BadConfig(
                f"ovs.db: runtime kata-go needs Open vSwitch on this node, by unix:, not {kind}:"
            )
        return os.path.normpath(f"{os.path.dirname(path)}/{self._view.vhost_directory}")

    def away(self) -> str:
        return f"ovs.db: no answer from {self.settings.db}; is ovsdb-server running?"

    def publish(self, view: View) -> None:
        with self._changed:
            self._view = view
            self._changed.notify_all()
        self.on_view()

    def take(self, most: int) -> list[Pending]:
        """Up to so many operations that someone still waits for; they count as sent."""
        taken: list[Pending] = []
        with self._lock:
            while self._queue and len(taken) < most:
                pending = self._queue.popleft()
                if pending.future.set_running_or_notify_cancel():
                    taken.append(pending)
        return taken

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"+")
        except BlockingIOError:
            return  # the pipe is full of the same word

    def close(self) -> None:
        """What is under way is seen through; what only waits is cancelled."""
        with self._lock:
            self.stopping = True
        if self._thread:
            self._wake()
            self._thread.join()
        for pending in self._queue:
            pending.future.cancel()
        os.close(self.wake_fd)
        os.close(self._wake_write)
