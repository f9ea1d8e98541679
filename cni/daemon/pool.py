"""Prepared ports for pods to come: who has which, handed out to requests and taken back.

A pool is the prepare half of a mode's plan, done ahead by a thread of its own (pool_worker.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cni.attach import plan
from cni.attach.context import Context, Node
from cni.attach.records import Record, Store
from cni.config.network import NetConf
from cni.config.settings import PoolSize
from cni.daemon.pool_shelf import Shelf
from cni.daemon.pool_store import PoolFiles, PreparedPort, port_of
from cni.daemon.pool_worker import PoolWorker
from cni.daemon.preparer import Preparer
from cni.errors import BadConfig, CheckFailed, TryAgain, VmlinkError
from cni.kernel.netlink import Netlink
from cni.modes.base import Mode
from cni.spec.types import AttachmentKey

log = logging.getLogger("vmlink")


class Pools:
    """The pools of one node, `wanted` by network and mode, with their files in `directory`."""

    def __init__(
        self,
        directory: Path,
        wanted: Mapping[str, Mapping[str, PoolSize]],
        node: Node,
        modes: Mapping[str, Mode],
    ) -> None:
        sizes = {f"{net}@{mode}": wanted[net][mode] for net in wanted for mode in wanted[net]}
        left = {path.name for path in directory.glob("*@*")} - set(sizes)
        shelves = [Shelf(PoolFiles(directory / name), sizes.get(name)) for name in (*sizes, *left)]
        self._shelves = {shelf.network_and_mode: shelf for shelf in shelves}
        self._preparer = Preparer(node, modes)
        self._worker = PoolWorker(self._preparer, self._shelves)
        for shelf in shelves:
            shelf.open()

    def start(self, store: Store) -> None:
        """Begin to adopt, remove and make, after unfinished ADDs were undone."""
        taken = {record.key.prepared for record in store.all()}
        for shelf in self._shelves.values():
            shelf.drop_taken(taken)
        self._worker.start()

    def wake(self) -> None:
        """Have the pools looked at: the switch has changed."""
        self._worker.wake()

    def close(self) -> None:
        """Return once the ports that are being made are finished or undone."""
        self._worker.close()

    def seen(self, conf: Mapping[str, Any]) -> None:
        """Take the network's configuration, as a request has it."""
        for (network_name, _), shelf in self._shelves.items():
            if network_name == conf["name"] and shelf.learn(conf):
                self._worker.wake()

    def known(self, key: AttachmentKey) -> bool:
        """Return whether this is a prepared port of ours."""
        return any(shelf.files.has(key.prepared) for shelf in self._shelves.values())

    def lost(self, port_id: str) -> None:
        """Have removed what is behind rows that neither a file nor a record names."""
        self._worker.sweep_later(port_id)

    def take(
        self, key: AttachmentKey, conf: NetConf, netlink: Netlink, timings: dict[str, float]
    ) -> PreparedPort | None:
        """Return a port for the attachment that fits and has just passed its check, or None.

        Its file stays until `taken`.
        """
        shelf = self._shelves.get((conf.network, conf.mode))
        while shelf and self._reachable(conf):
            port = shelf.take(lambda port: self._preparer.fits(port, key, conf))
            if port is None:
                return None
            try:
                plan.verify(port.plan.steps, self._preparer.context(port, netlink, timings))
            except CheckFailed as e:
                log.warning("a prepared port of %s is removed: %s", shelf.name, e)
                shelf.doom(port)
                self._worker.wake()
            except VmlinkError as e:
                log.info("the pool %s is passed over: %s", shelf.name, e)
                shelf.put_back(port)
                return None
            else:
                return port
        return None

    def _reachable(self, conf: NetConf) -> bool:
        """Return whether a port can be looked at now."""
        with suppress(TryAgain, BadConfig):
            self._preparer.modes[conf.mode].preparable(conf, self._preparer.node, "pools")
            return True
        return False

    def taken(self, conf: NetConf, port: PreparedPort) -> None:
        """Forget a port that a record has now."""
        shelf = self._shelves[conf.network, conf.mode]
        shelf.files.forget(port)
        shelf.count("given")
        self._worker.wake()

    def put_back(self, conf: NetConf, port: PreparedPort) -> None:
        """Return a port to which nothing was done."""
        self._shelves[conf.network, conf.mode].put_back(port)

    def give_back(self, record: Record, netlink: Netlink, timings: dict[str, float]) -> bool:
        """Return whether the port of an attachment is the pool's again, as new.

        Its pod has no part of it any more; if not, what remains is the caller's to undo.
        """
        shelf = self._shelves.get((record.network, record.mode))
        if shelf is None or not shelf.expect():
            return False
        renewed: list[PreparedPort] = []
        try:
            port = port_of(record.port)
            self._renew(shelf, port, record.key, self._preparer.context(port, netlink, timings))
            renewed.append(port)
        except Exception as e:  # whatever it is, the attachment must go
            log.info("the port of %s does not go back to the pool: %s", record.key, e)
        finally:
            shelf.arrive(renewed, 1, "returned")
            self._worker.wake()
        return bool(renewed)

    def _renew(self, shelf: Shelf, port: PreparedPort, former: AttachmentKey, cx: Context) -> None:
        if not shelf.conf or not self._preparer.fits(port, port.key, self._preparer.conf(shelf)):
            raise CheckFailed("the network's configuration has changed")
        for step in port.plan.steps:
            step.renew(cx, former)
        plan.verify(port.plan.steps, cx)
        shelf.files.save(port)
