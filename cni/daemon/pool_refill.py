"""Ports made ahead, for a pool in which few are left."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence

from cni.attach.context import Context
from cni.cancel import Cancel
from cni.config.network import NetConf
from cni.daemon.pool_adoption import remove_doomed
from cni.daemon.pool_shelf import Shelf
from cni.daemon.pool_store import PreparedPort
from cni.daemon.preparer import Preparer
from cni.errors import ClientGone, TryAgain, VmlinkError
from cni.kernel.netlink import Netlink

_SECONDS = 10  # for the switch to make a batch of ports


class Refill:
    """Makes ports until vmlinkd stops, which `stop` says."""

    def __init__(self, preparer: Preparer, stop: threading.Event) -> None:
        self._preparer = preparer
        self._stop = stop

    def make(self, shelf: Shelf, conf: NetConf, count: int, netlink: Netlink) -> None:
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
            remove_doomed(self._preparer, shelf, netlink)
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
