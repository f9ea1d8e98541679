"""The thread of the pools: when it looks at each of them, and in which order it works.

What no longer fits is removed (pool_adoption.py) before ports are made (pool_refill.py).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from cni.config.network import NetConf
from cni.daemon.pool_adoption import adopt, remove_doomed, sweep
from cni.daemon.pool_refill import Refill
from cni.daemon.pool_shelf import Shelf
from cni.daemon.preparer import Preparer
from cni.errors import BadConfig, VmlinkError
from cni.kernel.netlink import Netlink

log = logging.getLogger("vmlink")

_RETRY = 5  # seconds until what failed is tried again
_QUIET, _AT_MOST = 0.05, 0.5  # seconds: a burst of pods goes first


class PoolWorker:
    """The thread. Requests only wake it."""

    def __init__(self, preparer: Preparer, shelves: Mapping[tuple[str, str], Shelf]) -> None:
        self._preparer = preparer
        self._shelves = shelves
        self._stop = threading.Event()
        self._refill = Refill(preparer, self._stop)
        self._news = threading.Condition()  # for the two that follow
        self._woken = False
        self._lost: list[str] = []
        self._thread = threading.Thread(target=self._run, name="vmlink-pool", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; ports that are being made are finished or undone."""
        self._stop.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        """Have the pools looked at soon."""
        with self._news:
            self._woken = True
            self._news.notify_all()

    def sweep_later(self, port_id: str) -> None:
        """Have removed what is left of a prepared port that has lost its rows."""
        with self._news:
            self._lost.append(port_id)
        self.wake()

    def _run(self) -> None:
        with Netlink() as netlink:
            while not self._stop.is_set():
                for port_id in self._take_lost():
                    sweep(self._preparer, port_id, netlink)
                for shelf in self._open():
                    self._tend(shelf, netlink)
                self._sleep()
            for shelf in self._open():
                shelf.write()

    def _open(self) -> list[Shelf]:
        return [shelf for shelf in self._shelves.values() if not shelf.closed]

    def _sleep(self) -> None:
        troubled = any(shelf.error or shelf.doomed() for shelf in self._shelves.values())
        with self._news:
            self._news.wait_for(lambda: self._woken, _RETRY if troubled else None)
            until = time.monotonic() + _AT_MOST
            while self._woken and not self._stop.is_set() and time.monotonic() < until:
                self._woken = False
                self._news.wait_for(lambda: self._woken, _QUIET)
            self._woken = False

    def _take_lost(self) -> list[str]:
        with self._news:
            lost, self._lost = self._lost, []
        return lost

    def _tend(self, shelf: Shelf, netlink: Netlink) -> None:
        error = ""
        try:
            self._manage(shelf, netlink)
        except VmlinkError as e:
            error = e.msg
        except Exception as e:  # whatever it is, the other pools must go on
            log.exception("internal error")
            error = f"internal error: {e}"
        if error and error != shelf.error and not self._stop.is_set():
            log.warning("the pool %s cannot be filled: %s", shelf.name, error)
        shelf.error = error
        try:
            if shelf.size or not shelf.idle():
                shelf.write()
            else:
                shelf.close()
        except (VmlinkError, OSError) as e:
            log.warning("pool: %s", e)

    def _manage(self, shelf: Shelf, netlink: Netlink) -> None:
        conf: NetConf | None = None
        wrong: BadConfig | None = None
        if shelf.size and shelf.conf:
            try:
                conf = self._preparer.conf(shelf)
            except BadConfig as e:
                wrong = e
        if conf or not shelf.idle():
            adopt(self._preparer, shelf, conf, netlink)
            remove_doomed(self._preparer, shelf, netlink)
        if wrong:
            raise wrong
        if conf and (count := shelf.expect_missing()):
            self._refill.make(shelf, conf, count, netlink)
