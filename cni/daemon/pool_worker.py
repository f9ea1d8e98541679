"""The thread of the pools.

It makes ports when few are left, adopts those of a former process, and removes what no longer fits
and what is left of lost ones.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Sequence

from cni.attach import plan
from cni.attach.context import Context
from cni.cancel import Cancel
from cni.config.network import NetConf
from cni.daemon.pool_shelf import Shelf
from cni.daemon.pool_store import PreparedPort
from cni.daemon.preparer import Preparer
from cni.errors import BadConfig, CheckFailed, ClientGone, TryAgain, VmlinkError
from cni.kernel.netlink import Netlink

log = logging.getLogger("vmlink")

_SECONDS = 10  # for the switch to make a batch of ports
_RETRY = 5  # seconds until what failed is tried again
_QUIET, _AT_MOST = 0.05, 0.5  # seconds: a burst of pods goes first


class PoolWorker:
    """The thread. Requests only wake it."""

    def __init__(self, preparer: Preparer, shelves: dict[tuple[str, str], Shelf]) -> None:
        self._preparer = preparer
        self._shelves = shelves
        self._stop = threading.Event()
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
                    self._sweep(port_id, netlink)
                for shelf in list(self._shelves.values()):
                    self._tend(shelf, netlink)
                self._sleep()
            for shelf in self._shelves.values():
                shelf.write()

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

    def _sweep(self, port_id: str, netlink: Netlink) -> None:
        cx = self._preparer.context(PreparedPort(port_id, []), netlink)
        for mode in self._preparer.modes.values():
            try:
                mode.sweep(cx)
            except (VmlinkError, OSError) as e:
                log.warning("what is left of the prepared port %s stays: %s", port_id, e)

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
                shelf.files.remove()
                del self._shelves[shelf.network_and_mode]
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
            self._adopt(shelf, conf, netlink)
            self._remove(shelf, netlink)
        if wrong:
            raise wrong
        if conf and (count := shelf.expect_missing()):
            self._make(shelf, conf, count, netlink)

    def _adopt(self, shelf: Shelf, conf: NetConf | None, netlink: Netlink) -> None:
        """Make ready what a former process left and passes its check."""
        broken: list[PreparedPort] = []
        for port in shelf.former():
            try:
                plan.verify(port.plan.steps, self._preparer.context(port, netlink))
            except CheckFailed as e:
                log.warning("a prepared port of %s is removed: %s", shelf.name, e)
                broken.append(port)
        shelf.adopt(
            broken, lambda port: conf is not None and self._preparer.fits(port, port.key, conf)
        )

    def _remove(self, shelf: Shelf, netlink: Netlink) -> None:
        for port in shelf.doomed():
            plan.revert(port.plan, self._preparer.context(port, netlink))
            shelf.files.forget(port)
            shelf.removed(port)

    def _make(self, shelf: Shelf, conf: NetConf, count: int, netlink: Netlink) -> None:
        """Make ports: one kind of step for all of them after the other.

        So their rows go to the switch together.
        """
        ports = [self._new(conf) for _ in range(count)]
        cancel = Cancel(_SECONDS, self._stop.is_set)
        contexts = [self._preparer.context(port, netlink, cancel=cancel) for port in ports]
        failures: list[VmlinkError] = []
        try:
            for port in ports:
                shelf.files.save(port)
            for alike in zip(*(port.plan.steps for port in ports), strict=True):
                for step, cx in zip(alike, contexts, strict=True):
                    self._require_running()
                    step.do(cx)
            failures = self._finish(shelf, ports, contexts)
        finally:
            ready = [port for port in ports if port.ready]
            shelf.arrive(ready, count, "made")
            shelf.doom(*(port for port in ports if not port.ready))
            self._remove(shelf, netlink)
        if failures:
            raise failures[0]

    def _finish(
        self, shelf: Shelf, ports: Sequence[PreparedPort], contexts: Sequence[Context]
    ) -> list[VmlinkError]:
        """Wait until the switch has made the ports; return why some are not there."""
        failures: list[VmlinkError] = []
        for port, cx in zip(ports, contexts, strict=True):
            try:
                for step in port.plan.steps:
                    step.finish(cx)
            except ClientGone:
                failures.append(TryAgain("vmlinkd is stopping"))
            except VmlinkError as e:
                failures.append(e)
            else:
                port.facts, port.ready = cx.facts.to_json(), True
                shelf.files.save(port)
        return failures

    def _require_running(self) -> None:
        if self._stop.is_set():
            raise TryAgain("vmlinkd is stopping")

    def _new(self, conf: NetConf) -> PreparedPort:
        port = PreparedPort(secrets.token_hex(6), [])
        made = self._preparer.modes[conf.mode].plan(port.key, conf)
        port.prepare = [step.to_json() for step in made.prepare]
        return port
