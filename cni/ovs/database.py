"""Open vSwitch's database as other threads use it: operations go in, a view comes out.

The thread that talks to ovsdb-server is passed in: see `cni.ovs.open_database`.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable

from cni.config.settings import Ovs
from cni.errors import BadConfig, TryAgain
from cni.ovs.operations import Operation, Pending, View


class Database:
    """A queue of operations and the newest view of the switch.

    The rows of this vmlinkd are marked with `owner`. `connection` makes the connection, and
    returns the function that its thread runs until `stopping`: that function calls `take` for work
    and `publish` with each new view, and looks at the queue when `wake_fd` can be read.
    """

    def __init__(
        self, settings: Ovs, owner: str, connection: Callable[[Database], Callable[[], None]]
    ) -> None:
        self.settings = settings
        self.owner = owner
        self.stopping = False
        self.on_view: Callable[[], None] = lambda: None  # called after each new view
        self._connection = connection
        self._view = View()
        self._queue: deque[Pending] = deque()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self.wake_fd, self._wake_write = os.pipe()
        for fd in (self.wake_fd, self._wake_write):
            os.set_blocking(fd, False)

    def may_be_there(self) -> bool:
        """Tell whether a connection is worth a try: the socket exists, or the server is remote."""
        kind, _, path = self.settings.db.partition(":")
        return kind != "unix" or os.path.exists(path)

    def start(self) -> None:
        """Connect in the background, unless that has begun or vmlinkd stops."""
        with self._lock:
            if self._thread or self.stopping:
                return
            run = self._connection(self)
            self._thread = threading.Thread(target=run, name="vmlink-ovsdb", daemon=True)
            self._thread.start()

    def submit(self, operation: Operation) -> Pending:
        """Connect if need be, and write the operation with all others that wait by then.

        Raises TryAgain when vmlinkd stops.
        """
        self.start()
        return self.enqueue(operation)

    def enqueue(self, operation: Operation) -> Pending:
        """Queue an operation for when there is a connection, without making one.

        Raises TryAgain when vmlinkd stops.
        """
        pending = Pending(operation)
        with self._lock:
            if self.stopping:
                raise TryAgain("vmlinkd is stopping; try again when it runs")
            self._queue.append(pending)
            self._wake()
        return pending

    def look(self, seconds: float) -> View:
        """Return the newest view; wait up to `seconds` for the first one. Raises TryAgain."""
        self.start()
        with self._changed:
            if not self._changed.wait_for(lambda: self._view.bridges is not None, max(seconds, 0)):
                raise TryAgain(self.no_answer())
            return self._view

    def vhost_directory(self) -> str:
        """Return where ovs-vswitchd makes the sockets of vhost-user.

        That is its run directory, where ovsdb-server's socket is, too, or one below. Raises
        BadConfig when the database is not on this node.
        """
        kind, _, path = self.settings.db.partition(":")
        if kind != "unix":
            raise BadConfig(
                f"ovs.db: runtime kata-go needs Open vSwitch on this node, found {kind}:; "
                "use unix:/PATH"
            )
        return os.path.normpath(f"{os.path.dirname(path)}/{self._view.vhost_directory}")

    def no_answer(self) -> str:
        """Return the message for when ovsdb-server does not answer."""
        return f"ovs.db: no answer from {self.settings.db}; is ovsdb-server running?"

    def publish(self, view: View) -> None:
        """Make `view` the newest one. For the connection's thread."""
        with self._changed:
            self._view = view
            self._changed.notify_all()
        self.on_view()

    def take(self, most: int) -> list[Pending]:
        """Return up to `most` operations that a caller still waits for; they count as sent now.

        For the connection's thread.
        """
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
            return  # the pipe is full, so the thread will wake anyway

    def close(self) -> None:
        """Wait for the transaction that is under way, and cancel what is only queued."""
        with self._lock:
            self.stopping = True
            self._wake()
        if self._thread:
            self._thread.join()
        for pending in self._queue:
            pending.future.cancel()
        os.close(self.wake_fd)
        os.close(self._wake_write)
