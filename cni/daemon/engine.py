"""The verbs: Request -> Result. No stdio, no sockets.

ADD writes an intent, applies the mode's plan and completes the record. DEL reverts the record's
plan, or plans again when there is none. GC deletes what is owned and no longer valid.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, cast

from cni.attach import plan
from cni.attach.context import Context, Node
from cni.attach.locks import KeyLocks
from cni.attach.plan import Plan
from cni.attach.records import Record, Store
from cni.cancel import Cancel
from cni.config import network as config
from cni.config.network import NetConf
from cni.config.uplinks import Chained, OvsUplink
from cni.daemon import check as verdict
from cni.daemon.pool import Pools
from cni.daemon.result_builder import describe, result_of
from cni.errors import BadConfig, BadEnvironment, CheckFailed, VmlinkError
from cni.ipam import delegate
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from cni.kubeovn.pod_network import PodConfigs
from cni.modes import MODES
from cni.modes.steps import leased_addresses
from cni.ovs import port_ops
from cni.spec import request as spec
from cni.spec import result as results
from cni.spec.types import AttachmentKey, Request, Result

log = logging.getLogger("vmlink")

_RECOVERY_SECONDS = 30


@dataclass
class Call:
    """A request on its way: the pod's namespace as it was passed, patience, notes for the log."""

    request: Request
    cancel: Cancel
    pod: Namespace | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> AttachmentKey:
        assert self.request.key is not None
        return self.request.key


class Engine:
    """Serves the verbs on one node, with the records of `store`."""

    def __init__(
        self, store: Store, node: Node, pools: Pools, configs: PodConfigs | None = None
    ) -> None:
        self._store = store
        self._node = node
        self._pools = pools
        self._configs = configs or PodConfigs()
        self._locks = KeyLocks()
        self._thread = threading.local()
        self._verbs: dict[str, Callable[[Call], Result | None]] = {
            "ADD": self.add,
            "DEL": self.delete,
            "CHECK": self.check,
            "GC": self.collect,
            "STATUS": self.status,
        }

    def handle(self, call: Call) -> Result | None:
        """Serve one verb. Raises VmlinkError; nothing is half-made then."""
        return self._verbs[call.request.verb](call)

    def recover(self) -> None:
        """Undo what a former process began and did not finish. Call before serving."""
        for record in self._store.all():
            if not record.intent:
                self._recall(record)
            else:
                try:
                    self._revert(
                        record, Plan.from_json(record.plan), Cancel(_RECOVERY_SECONDS), None, {}
                    )
                    log.info("undid an unfinished ADD of %s", record.key)
                except Exception as e:  # whatever it is, the others must be served
                    log.warning("cannot undo the unfinished ADD of %s: %s", record.key, e)

    def _recall(self, record: Record) -> None:
        try:
            leased_addresses.recall(record.key, record.plan, self._node.claims)
        except (KeyError, TypeError, VmlinkError) as e:
            log.warning("the addresses of %s are not watched over: %r", record.key, e)

    def attached(self, key: AttachmentKey) -> bool:
        """Whether there is something that a DEL would undo."""
        return self._store.load(key) is not None

    def add(self, call: Call) -> Result:
        conf = self._configs.of(call.request, call.cancel)
        self._pools.seen(call.request.conf)
        self._require_pod(call)
        if conf.prev and not isinstance(conf.uplink, Chained):
            raise BadConfig("prevResult: vmlink with an uplink of its own is a chain's first")
        with self._locks.held(call.key, call.cancel):
            steps, record = self._begin(call, conf)
            with self._context(record, steps, call) as cx:
                try:
                    return plan.apply(steps, cx, lambda: self._complete(record, conf, cx))
                except BaseException:
                    if cx.clean:
                        self._store.remove(record.key)
                    raise

    def _begin(self, call: Call, conf: NetConf) -> tuple[Plan, Record]:
        """The intent on disk, with a kit of the pool if it has one that fits."""
        timings = call.notes.setdefault("steps", {})
        kit = self._pools.take(call.key, conf, self._netlink(), timings)
        steps = MODES[conf.mode].plan(replace(call.key, kit=kit.id if kit else ""), conf)
        record = _record(call, conf, steps)
        if kit:
            record.kit, record.facts = kit.to_json(), dict(kit.facts)
        try:
            self._store.begin(record)
        except BaseException:
            if kit:
                self._pools.put_back(conf, kit)
            raise
        if kit:
            self._pools.taken(conf, kit)
        return steps, record

    def delete(self, call: Call) -> None:
        with self._locks.held(call.key, call.cancel):
            record = self._store.load(call.key)
            steps = _plan_of(record) if record else None
            if record is None or steps is None:
                steps, record = self._plan_again(call)
            self._revert(record, steps, call.cancel, call.pod, call.notes)

    def _plan_again(self, call: Call) -> tuple[Plan, Record]:
        possible, key = self._configs.possible(call.request), call.key
        if isinstance(possible[0].uplink, OvsUplink):
            found = port_ops.Find(key)
            pending = self._node.ovs.submit(found)
            pending.wait(call.cancel.remaining(), self._node.ovs.no_answer())
            key = found.key
        steps = plan.union(MODES[conf.mode].plan(key, conf) for conf in possible)
        record = _record(call, possible[0], steps)
        record.intent, record.kit = True, {"id": key.kit}
        return steps, record

    def check(self, call: Call) -> None:
        conf = self._parse(call)
        prev = conf.prev
        if prev is None:
            raise BadConfig("prevResult: required for CHECK")
        self._require_pod(call)
        with self._locks.held(call.key, call.cancel):
            record = self._store.load(call.key)
            if record is None or record.intent:
                raise CheckFailed(f"{call.key} is not attached here")
            conf = replace(conf, mode=record.mode)  # the pod's own, if it has chosen one
            steps = Plan.from_json(record.plan)
            with self._context(record, steps, call) as cx:
                if MODES[conf.mode].in_pod(conf):
                    verdict.judge(prev, call.key.ifname, cx.pod_netlink)
                else:
                    verdict.compare(prev, call.key.ifname, record.result)
                plan.verify(steps.steps, cx)

    def collect(self, call: Call) -> None:
        conf = config.parse(call.request)
        valid = config.valid_attachments(call.request.conf)
        errors: list[str] = []
        for record in self._store.all():
            if record.network == conf.network and record.key not in valid:
                try:
                    self._collect_one(record.key, call)
                except Exception as e:  # the rest is collected all the same
                    errors.append(f"{record.key}: {e}")
        if conf.ipam:
            try:
                delegate.collect(_ipam_call(call.request), valid)
            except VmlinkError as e:
                errors.append(f"ipam {conf.ipam}: {e.msg}")
        if errors:
            raise VmlinkError("GC: " + "; ".join(errors))

    def status(self, call: Call) -> None:
        conf = self._parse(call)
        MODES[conf.mode].ready(conf, self._node)
        if conf.kubeovn:
            self._configs.pods.ready()
        if conf.ipam:
            delegate.status(_ipam_call(call.request))

    def _parse(self, call: Call) -> NetConf:
        conf = config.parse(call.request)
        self._pools.seen(call.request.conf)
        return conf

    def _collect_one(self, key: AttachmentKey, call: Call) -> None:
        with self._locks.held(key, call.cancel):
            if record := self._store.load(key):
                steps = Plan.from_json(record.plan)
                self._revert(record, steps, call.cancel, None, call.notes)

    def _complete(self, record: Record, conf: NetConf, cx: Context) -> Result:
        result = result_of(conf, cx, record.netns_path)
        record.facts = cx.facts
        record.device = describe(conf, cx, result, record.netns_path)
        record.result = results.dump(result, results.VERSIONS[-1])
        self._store.finish(record)
        return result

    def _revert(
        self,
        record: Record,
        steps: Plan,
        cancel: Cancel,
        pod: Namespace | None,
        notes: dict[str, Any],
    ) -> None:
        """Undo a record's plan, with the request that made it: an address is released with the
        configuration that it was taken with."""
        request = spec.parse({**record.env, "CNI_COMMAND": "DEL"}, record.stdin.encode())
        with ExitStack() as stack:
            if pod is None and (pod := _reopen(record)):
                stack.enter_context(pod)
            call = Call(request, cancel, pod, notes)
            cx = stack.enter_context(self._context(record, steps, call))
            plan.revert(steps, cx, lambda: self._give_back(record, cx))
        self._store.remove(record.key)

    def _give_back(self, record: Record, cx: Context) -> bool:
        whole = bool(record.kit) and not record.intent
        return whole and self._pools.give_back(record, cx.host_netlink, cx.timings)

    def _context(self, record: Record, steps: Plan, call: Call) -> Context:
        call.notes.update(network=record.network, mode=record.mode, uplink=record.uplink)
        return Context(
            key=record.key,
            node=self._node,
            host_netlink=self._netlink(),
            pod=call.pod,
            cancel=call.cancel,
            ipam_call=_ipam_call(call.request),
            pod_links=steps.pod_links(),
            facts=record.facts,
            timings=call.notes.setdefault("steps", {}),
        )

    def _netlink(self) -> Netlink:
        """One for each worker, whose home the host's namespace is, and all of its requests."""
        if not hasattr(self._thread, "netlink"):
            self._thread.netlink = Netlink()
        return cast(Netlink, self._thread.netlink)

    def _require_pod(self, call: Call) -> None:
        if call.pod is None:
            raise BadEnvironment(f"CNI_NETNS: cannot open {call.request.netns_path!r}")
        if call.pod.same_as(self._node.host) and call.request.env.get("CNI_NETNS_OVERRIDE") != "1":
            raise BadEnvironment(
                "CNI_NETNS: is vmlinkd's own namespace; CNI_NETNS_OVERRIDE=1 allows it"
            )


def _record(call: Call, conf: NetConf, steps: Plan) -> Record:
    return Record(
        container_id=call.key.container_id,
        ifname=call.key.ifname,
        network=conf.network,
        mode=conf.mode,
        uplink=conf.uplink.kind,
        plan=steps.to_json(),
        netns_path=call.request.netns_path,
        netns_identity=call.pod.identity if call.pod else (0, 0),
        stdin=call.request.stdin.decode(),
        env=call.request.env,
    )


def _plan_of(record: Record) -> Plan | None:
    """None for the plan of another version of vmlink, whose steps may have had other fields."""
    try:
        return Plan.from_json(record.plan)
    except (KeyError, TypeError) as e:
        log.warning("the record of %s has a foreign plan (%r); DEL plans again", record.key, e)
        return None


def _ipam_call(request: Request) -> delegate.Call:
    return delegate.Call(
        network=request.conf["name"],
        config=request.conf,
        env=request.env,
        stdin=request.stdin,
        key=request.key,
        args=request.args,
    )


def _reopen(record: Record) -> Namespace | None:
    """The namespace of the record, unless it is gone and its path perhaps another's by now."""
    try:
        found = Namespace.open(record.netns_path)
    except BadEnvironment:
        return None
    if found.identity == record.netns_identity:
        return found
    found.close()
    return None
