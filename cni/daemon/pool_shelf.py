"""What one pool has: the prepared ports that are ready, to be adopted, or to be removed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from cni.config.settings import PoolSize
from cni.daemon.pool_store import PoolFiles, PreparedPort
from cni.spec.request import PER_CALL_KEYS

_COUNTS = ("made", "given", "returned", "thrown_away")


class Shelf:
    """The prepared ports of one network and mode.

    `size` is None when the settings no longer name the pool. All that requests and the pool's
    thread share is behind `_lock`.
    """

    def __init__(self, files: PoolFiles, size: PoolSize | None) -> None:
        self.files = files
        self.size = size
        self.error = ""  # of the pool's thread, as is `closed`
        self.closed = False
        self._lock = threading.Lock()
        self._conf: dict[str, Any] = {}
        self._ready: deque[PreparedPort] = deque()
        self._former: list[PreparedPort] = []  # of a former process, not yet adopted
        self._doomed: list[PreparedPort] = []
        self._coming = 0  # being made, or on their way back
        self._counts = dict.fromkeys(_COUNTS, 0)

    @property
    def name(self) -> str:
        """The pool as NETWORK@MODE."""
        return self.files.directory.name

    @property
    def network_and_mode(self) -> tuple[str, str]:
        """The network and the mode of its ports."""
        network, _, mode = self.name.partition("@")
        return network, mode

    @property
    def conf(self) -> dict[str, Any]:
        """The network's configuration, {} until a request has brought it."""
        with self._lock:
            return self._conf

    def open(self) -> None:
        """Read what a former process left."""
        numbers, ports = self.files.load()
        with self._lock:
            self._conf = numbers.get("conf", {})
            self._counts |= {name: numbers.get(name, 0) for name in _COUNTS}
            for port in ports:
                (self._former if port.ready else self._doomed).append(port)

    def drop_taken(self, taken: Collection[str]) -> None:
        """Forget ports of a former process that records name: it ended between the two files."""
        with self._lock:
            for ports in (self._former, self._doomed):
                for port in [port for port in ports if port.id in taken]:
                    self.files.forget(port)
                    ports.remove(port)

    def learn(self, conf: Mapping[str, Any]) -> bool:
        """Take the network's configuration from a request; return whether it has changed."""
        lasting = {key: value for key, value in conf.items() if key not in PER_CALL_KEYS}
        with self._lock:
            changed = self._conf != lasting
            self._conf = lasting
            return changed

    def take(self, fits: Callable[[PreparedPort], bool]) -> PreparedPort | None:
        """Return the first ready port if it fits; it is the caller's then."""
        with self._lock:
            return self._ready.popleft() if self._ready and fits(self._ready[0]) else None

    def put_back(self, port: PreparedPort) -> None:
        """Return a port to which nothing was done."""
        with self._lock:
            self._ready.appendleft(port)

    def count(self, what: str) -> None:
        """Add one to a number that vmlinkctl shows."""
        with self._lock:
            self._counts[what] += 1

    def expect(self, most: int = 1) -> int:
        """Reserve room for ports that are on their way; return for how many, at most `most`."""
        with self._lock:
            room = max(0, min(most, self._room()))
            self._coming += room
            return room

    def expect_missing(self) -> int:
        """Reserve room for all that are to be made now; return for how many."""
        with self._lock:
            few = self.size is not None and len(self._ready) < self.size.refill_below
            room = max(0, self._room()) if few else 0
            self._coming += room
            return room

    def _room(self) -> int:
        if self.size is None:
            return 0
        return self.size.size - len(self._ready) - len(self._former) - self._coming

    def arrive(self, ready: Collection[PreparedPort], expected: int, what: str) -> None:
        """Add ports for which room was reserved; `what` counts them."""
        with self._lock:
            self._coming -= expected
            self._ready.extend(ready)
            self._counts[what] += len(ready)

    def doom(self, *ports: PreparedPort) -> None:
        """Have ports removed."""
        with self._lock:
            self._doomed += ports

    def doomed(self) -> list[PreparedPort]:
        """Return the ports that are to be removed."""
        with self._lock:
            return list(self._doomed)

    def removed(self, port: PreparedPort) -> None:
        """Note that a doomed port is gone."""
        with self._lock:
            self._doomed.remove(port)
            self._counts["thrown_away"] += 1

    def former(self) -> list[PreparedPort]:
        """Return the ports of a former process that are not yet adopted."""
        with self._lock:
            return list(self._former)

    def adopt(self, broken: Iterable[PreparedPort], fits: Callable[[PreparedPort], bool]) -> None:
        """Make ready what a former process left; doom what is broken or no longer fits."""
        broken = list(broken)
        with self._lock:
            ports = [*self._ready, *self._former]
            self._former = []
            self._ready.clear()
            for port in ports:
                (self._ready if port not in broken and fits(port) else self._doomed).append(port)

    def idle(self) -> bool:
        """Return whether there is nothing in the pool."""
        with self._lock:
            return not (self._ready or self._former or self._doomed)

    def close(self) -> None:
        """Remove the directory of a pool that is empty and no longer wanted. Raises OSError."""
        self.files.remove()
        self.closed = True

    def write(self) -> None:
        """Write the numbers for vmlinkctl and the next process. Raises IOFailure."""
        network, mode = self.network_and_mode
        size = vars(self.size) if self.size else {"size": 0, "refill_below": 0}
        with self._lock:
            numbers = {"network": network, "mode": mode, **size, "ready": len(self._ready)}
            numbers |= {**self._counts, "error": self.error, "conf": self._conf}
        self.files.write_numbers(numbers)
