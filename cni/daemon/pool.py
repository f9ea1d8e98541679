"""Kits wait for pods: the prepare half of a mode's plan, done ahead by a thread of its own.

It makes kits when few are left, one kind of step for all of them after the other, so that their
rows go to the switch together, and undoes those that no longer fit. Requests take and give back.
"""

from __future__ import annotations

import concurrent.futures
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cni.attach import plan
from cni.attach.context import Context, Node
from cni.attach.plan import Plan, Step
from cni.attach.records import Record, Store
from cni.cancel import Cancel
from cni.config import network as config
from cni.config.network import Chosen, NetConf
from cni.config.settings import PoolSize
from cni.config.uplinks import OvsUplink
from cni.daemon.pool_store import Kit, Pool
from cni.errors import BadConfig, CheckFailed, TryAgain, VmlinkError
from cni.ipam import delegate
from cni.kernel.netlink import Netlink
from cni.modes import MODES
from cni.modes.steps.links import remove_host_links
from cni.modes.vhostuser import SocketDirectory
from cni.ovs.operations import Pending
from cni.ovs.port_ops import missing_bridge
from cni.spec.result import VERSIONS
from cni.spec.types import AttachmentKey, Request

log = logging.getLogger("vmlink")

_SECONDS = 10  # for the switch to make a batch of ports, or to look at a kit
_RETRY = 5  # seconds until what failed is tried again
_QUIET, _AT_MOST = 0.05, 0.5  # seconds: a burst of pods goes first
# What a runtime puts into a network's configuration for one call.
_CALLS = frozenset(
    "cniVersion prevResult runtimeConfig args cni.dev/valid-attachments cni.dev/attachments".split()
)
_NO_IPAM = delegate.Call("", {})


class Pools:
    """The pools of one node, `wanted` by network and mode, with their files in `directory`."""

    def __init__(
        self, directory: Path, wanted: Mapping[str, Mapping[str, PoolSize]], node: Node
    ) -> None:
        sizes = {f"{net}@{mode}": wanted[net][mode] for net in wanted for mode in wanted[net]}
        left = {path.name for path in directory.glob("*@*")} - set(sizes)
        pools = [Pool(directory / name, sizes.get(name)) for name in (*sizes, *left)]
        self._pools = {pool.name: pool for pool in pools}
        self._node = node
        self._lost: list[str] = []
        self._changed = threading.Condition()  # its lock is for all that pools contain
        self._news = False
        self._stop: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="vmlink-pool", daemon=True)
        for pool in pools:
            pool.open()

    def start(self, store: Store) -> None:
        """Begin to adopt, clear and make, after `store` has undone what was not finished."""
        taken = {record.key.kit for record in store.all()}
        for pool in self._pools.values():
            for kit in (*pool.found, *pool.doomed):
                if kit.id in taken:  # it ended between the record and the kit
                    pool.forget(kit)
            pool.found = [kit for kit in pool.found if kit.id not in taken]
            pool.doomed = [kit for kit in pool.doomed if kit.id not in taken]
        self._node.ovs.on_view = self._wake
        self._thread.start()

    def close(self) -> None:
        """Kits that are being made are finished or undone."""
        self._stop.set_result(None)
        self._wake()
        if self._thread.is_alive():
            self._thread.join()

    def seen(self, conf: Mapping[str, Any]) -> None:
        """The network's configuration, as a request has it."""
        with self._changed:
            for (network, _), pool in self._pools.items():
                if network == conf["name"]:
                    lasting = {key: conf[key] for key in conf if key not in _CALLS}
                    if pool.conf != lasting:
                        pool.conf = lasting
                        self._wake()

    def known(self, key: AttachmentKey) -> bool:
        """Whether this is a kit of ours."""
        return any(pool.has(key.kit) for pool in list(self._pools.values()))

    def lost(self, kit: str) -> None:
        """Its rows had neither a file nor a record and are gone; what is behind them follows."""
        with self._changed:
            self._lost.append(kit)
            self._wake()

    def take(
        self, key: AttachmentKey, conf: NetConf, netlink: Netlink, timings: dict[str, float]
    ) -> Kit | None:
        """A kit for the attachment that fits and that has just passed its check, or None. Its file
        stays until `taken`."""
        pool = self._pools.get((conf.network, conf.mode))
        while pool and self._connected() and (kit := self._first(pool, key, conf)):
            try:
                plan.verify(kit.plan.steps, self._context(kit, netlink, timings))
                return kit
            except CheckFailed as e:
                log.warning("a kit of the pool %s is thrown away: %s", pool.directory.name, e)
                with self._changed:
                    pool.doomed.append(kit)
                    self._wake()
            except VmlinkError as e:
                log.info("the pool %s is passed over: %s", pool.directory.name, e)
                self.put_back(conf, kit)
                return None
        return None

    def _connected(self) -> bool:
        with suppress(TryAgain):
            return self._node.ovs.look(0).connected
        return False

    def _first(self, pool: Pool, key: AttachmentKey, conf: NetConf) -> Kit | None:
        with self._changed:
            kit = pool.ready[0] if pool.ready else None
            if kit is None or not _fits(kit, key, conf):
                return None
            return pool.ready.popleft()

    def taken(self, conf: NetConf, kit: Kit) -> None:
        """A record has it now."""
        pool = self._pools[conf.network, conf.mode]
        pool.forget(kit)
        with self._changed:
            pool.counts["given"] += 1
            self._wake()

    def put_back(self, conf: NetConf, kit: Kit) -> None:
        """Nothing was done to it."""
        with self._changed:
            self._pools[conf.network, conf.mode].ready.appendleft(kit)

    def give_back(self, record: Record, netlink: Netlink, timings: dict[str, float]) -> bool:
        """Whether the kit of an attachment is the pool's again, as new. Its pod has no part of it
        any more; if not, what remains is the caller's to undo."""
        pool, kit = self._pools.get((record.network, record.mode)), Kit(**record.kit)
        with self._changed:
            if pool is None or pool.room() <= 0:
                return False
            pool.coming += 1
        returned = False
        try:
            self._renew(pool, kit, record.key, self._context(kit, netlink, timings))
            returned = True
        except Exception as e:  # whatever it is, the attachment must go
            log.info("the kit of %s does not go back: %s", record.key, e)
        finally:
            with self._changed:
                pool.coming -= 1
                pool.counts["returned"] += returned
                if returned:
                    pool.ready.append(kit)
                self._wake()
        return returned

    def _renew(self, pool: Pool, kit: Kit, former: AttachmentKey, cx: Context) -> None:
        if not pool.conf or not _fits(kit, kit.key, _netconf(pool)):
            raise CheckFailed("the network has changed")
        for step in kit.plan.steps:
            step.renew(cx, former)
        plan.verify(kit.plan.steps, cx)
        pool.save(kit)

    def _wake(self) -> None:
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def _run(self) -> None:
        with Netlink() as netlink:
            while not self._stop.done():
                for kit in self._take_lost():
                    self._sweep(kit, netlink)
                for pool in list(self._pools.values()):
                    self._tend(pool, netlink)
                self._sleep()
            for pool in self._pools.values():
                pool.tell()

    def _sleep(self) -> None:
        with self._changed:
            troubled = any(pool.error or pool.doomed for pool in self._pools.values())
            self._changed.wait_for(lambda: self._news, _RETRY if troubled else None)
            until = time.monotonic() + _AT_MOST
            while self._news and not self._stop.done() and time.monotonic() < until:
                self._news = False
                self._changed.wait_for(lambda: self._news, _QUIET)
            self._news = False

    def _take_lost(self) -> list[str]:
        with self._changed:
            lost, self._lost = self._lost, []
        return lost

    def _sweep(self, kit: str, netlink: Netlink) -> None:
        cx = self._context(Kit(kit, []), netlink)
        try:
            remove_host_links(cx, cx.key.tap_port)
            SocketDirectory("", None, None).undo(cx)
        except (VmlinkError, OSError) as e:
            log.warning("what kit %s left cannot be removed: %s", kit, e)

    def _tend(self, pool: Pool, netlink: Netlink) -> None:
        error = ""
        try:
            self._manage(pool, netlink)
        except VmlinkError as e:
            error = e.msg
        except Exception as e:  # whatever it is, the other pools must go on
            log.exception("internal error")
            error = f"internal error: {e}"
        if error and error != pool.error and not self._stop.done():
            log.warning("the pool %s cannot be filled: %s", pool.directory.name, error)
        pool.error = error
        try:
            if pool.size or pool.found or pool.ready or pool.doomed:
                pool.tell()
            else:
                pool.close()
                del self._pools[pool.name]
        except (VmlinkError, OSError) as e:
            log.warning("pool: %s", e)

    def _manage(self, pool: Pool, netlink: Netlink) -> None:
        conf: NetConf | None = None
        wrong: BadConfig | None = None
        if pool.size and pool.conf:
            try:
                conf = _netconf(pool)
                self._require_bridge(conf)
            except BadConfig as e:
                conf, wrong = None, e
        if not conf and not pool.ready and not pool.found and not pool.doomed:
            if wrong:
                raise wrong
            return
        if not self._connected():
            raise TryAgain(self._node.ovs.no_answer())
        self._sort(pool, conf, netlink)
        self._clear(pool, netlink)
        if wrong:
            raise wrong
        if conf and (count := self._missing(pool)):
            self._make(pool, conf, count, netlink)

    def _missing(self, pool: Pool) -> int:
        """How many are to be made; they are counted as coming."""
        with self._changed:
            few = pool.size is not None and len(pool.ready) < pool.size.refill_below
            count = max(pool.room(), 0) if few else 0
            pool.coming += count
            return count

    def _require_bridge(self, conf: NetConf) -> None:
        assert isinstance(conf.uplink, OvsUplink)
        bridges = self._node.ovs.look(0).bridges or {}
        if conf.uplink.bridge not in bridges:
            raise BadConfig(missing_bridge(conf.uplink.bridge, bridges))

    def _sort(self, pool: Pool, conf: NetConf | None, netlink: Netlink) -> None:
        """What was found is ready if it passes; what does not fit any more is doomed."""
        broken: list[Kit] = []
        for kit in pool.found:
            try:
                plan.verify(kit.plan.steps, self._context(kit, netlink))
            except CheckFailed as e:
                log.warning("a kit of the pool %s is thrown away: %s", pool.directory.name, e)
                broken.append(kit)
        with self._changed:
            kits = [*pool.ready, *pool.found]
            pool.found = []
            pool.ready.clear()
            for kit in kits:
                fits = kit not in broken and conf is not None and _fits(kit, kit.key, conf)
                (pool.ready if fits else pool.doomed).append(kit)

    def _clear(self, pool: Pool, netlink: Netlink) -> None:
        for kit in list(pool.doomed):
            plan.revert(kit.plan, self._context(kit, netlink))
            pool.forget(kit)
            with self._changed:
                pool.doomed.remove(kit)
                pool.counts["thrown_away"] += 1

    def _make(self, pool: Pool, conf: NetConf, count: int, netlink: Netlink) -> None:
        kits = [_new(conf) for _ in range(count)]
        contexts = [self._context(kit, netlink) for kit in kits]
        try:
            for kit in kits:
                pool.save(kit)
            for alike in zip(*(kit.plan.steps for kit in kits), strict=True):
                for step, cx in zip(alike, contexts, strict=True):
                    self._do(step, cx)
            failed = self._await([cx.pending_port for cx in contexts if cx.pending_port])
            for kit, cx in zip(kits, contexts, strict=True):
                if not cx.pending_port or cx.pending_port not in failed:
                    kit.facts, kit.ready = cx.facts, True
                    pool.save(kit)
        finally:
            with self._changed:
                pool.ready.extend(kit for kit in kits if kit.ready)
                pool.counts["made"] += sum(kit.ready for kit in kits)
                pool.doomed += [kit for kit in kits if not kit.ready]
                pool.coming -= count
            self._clear(pool, netlink)
        if failed:
            raise next(iter(failed.values()))

    def _do(self, step: Step, cx: Context) -> None:
        if self._stop.done():
            raise TryAgain("vmlinkd is stopping")
        step.do(cx)

    def _await(self, pending: list[Pending]) -> dict[Pending, Exception]:
        """Until the switch has made them. Those that it has not made, with the reason."""
        until = time.monotonic() + _SECONDS
        left: set[Future[None]] = {each.future for each in pending}
        while left and not self._stop.done() and time.monotonic() < until:
            ends = concurrent.futures.FIRST_COMPLETED
            concurrent.futures.wait({*left, self._stop}, until - time.monotonic(), ends)
            left = {future for future in left if not future.done()}
        failed: dict[Pending, Exception] = {}
        for each in pending:
            try:
                each.wait(0, "ovs-vswitchd has not made the ports in time; is it running?")
            except VmlinkError as e:
                failed[each] = e
        return failed

    def _context(
        self, kit: Kit, netlink: Netlink, timings: dict[str, float] | None = None
    ) -> Context:
        return Context(
            key=kit.key,
            node=self._node,
            host_netlink=netlink,
            pod=None,
            cancel=Cancel(_SECONDS),
            ipam_call=_NO_IPAM,
            facts=dict(kit.facts),
            timings=timings,
        )


def _netconf(pool: Pool) -> NetConf:
    """The network's part of a configuration alone. Raises BadConfig, which names the pool where it
    is the pool that makes no sense."""
    network, mode = pool.name
    where = f"pools.{network}.{mode}"
    conf = config.parse(Request("STATUS", VERSIONS[-1], pool.conf, b"", {}), Chosen(mode, where))
    if not isinstance(conf.uplink, OvsUplink):
        raise BadConfig(f"{where}: only a port of Open vSwitch takes longer to make than to take")
    if conf.tap.name:
        raise BadConfig(f"{where}: tap.name is one name, and a pool has many taps; drop one")
    uplink = replace(conf.uplink, external_ids={})
    return replace(conf, uplink=uplink, mac="", bandwidth=None)


def _new(conf: NetConf) -> Kit:
    kit = Kit(secrets.token_hex(6), [])
    made: Plan = MODES[conf.mode].plan(kit.key, conf)
    kit.prepare = [step.to_json() for step in made.prepare]
    return kit


def _fits(kit: Kit, key: AttachmentKey, conf: NetConf) -> bool:
    made: Plan = MODES[conf.mode].plan(replace(key, kit=kit.id), conf)
    return made.prepare == kit.plan.prepare
