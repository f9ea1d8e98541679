"""The CNI verbs: Request -> Result. No stdio, no sockets; no mode, uplink or step by name.

ADD writes an intent, applies the mode's plan and completes the record. DEL reverts the record's
plan, or plans again when there is none. GC deletes what is owned and no longer valid.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, cast

from cni.attach import plan
from cni.attach.context import Context, Node
from cni.attach.locks import KeyLocks
from cni.attach.plan import Plan, Step
from cni.attach.records import Record, Store
from cni.cancel import Cancel
from cni.config import network
from cni.config.network import NetConf
from cni.daemon import check
from cni.daemon.pool import Pools
from cni.daemon.result_builder import build_device, build_result
from cni.errors import BadConfig, BadEnvironment, CheckFailed, VmlinkError, refuses_configuration
from cni.ipam import delegate
from cni.kernel import capabilities
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from cni.kubeovn.pod_network import PodNetworks
from cni.modes.base import Mode
from cni.spec import request as cni_request
from cni.spec import result as results
from cni.spec.types import AttachmentKey, Request, Result

log = logging.getLogger("vmlink")

_RECOVERY_SECONDS = 30


@dataclass
class Call:
    """A request on its way.

    `pod` is the pod's namespace as the client passed it; `notes` go into the log line.
    """

    request: Request
    cancel: Cancel
    pod: Namespace | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> AttachmentKey:
        """The attachment. GC and STATUS are about none."""
        assert self.request.key is not None
        return self.request.key


class Engine:
    """Serves the verbs on one node, with the records of `store`."""

    def __init__(
        self,
        store: Store,
        node: Node,
        modes: Mapping[str, Mode],
        pools: Pools,
        networks: PodNetworks,
    ) -> None:
        self._store = store
        self._node = node
        self._modes = modes
        self._pools = pools
        self._networks = networks
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
            try:
                if record.intent:
                    self._undo_unfinished(record)
                else:
                    self._resume(record)
            except Exception as e:  # whatever it is, the others must be served
                log.warning("cannot recover %s: %s; its DEL tries again", record.key, e)

    def _undo_unfinished(self, record: Record) -> None:
        call = Call(_request_of(record), Cancel(_RECOVERY_SECONDS))
        self._revert(*self._undoable(call, record), call)
        log.info("undid an unfinished ADD of %s", record.key)

    def _resume(self, record: Record) -> None:
        """Take again what only the memory of the former process held."""
        steps = record.plan()
        holding = [s for s in steps.steps if type(s).resume is not Step.resume] if steps else []
        if steps and holding:
            call = Call(_request_of(record), Cancel(_RECOVERY_SECONDS))
            with self._context(record, steps, call) as cx:
                for step in holding:
                    step.resume(cx)

    def attached(self, key: AttachmentKey) -> bool:
        """Return whether there is something that a DEL would undo."""
        return self._store.load(key) is not None

    def add(self, call: Call) -> Result:
        """Attach the pod. Raises VmlinkError; what was begun is undone then."""
        conf = self._networks.of(call.request, call.cancel)
        self._pools.seen(call.request.conf)
        self._require_pod(call)
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
        """Write the intent, with a port of the pool if it has one that fits."""
        timings = call.notes.setdefault("steps", {})
        port = self._pools.take(call.key, conf, self._netlink(), timings)
        key = replace(call.key, prepared=port.id if port else "")
        steps = self._modes[conf.mode].plan(key, conf)
        record = _record(call, conf, steps)
        if port:
            record.port, record.facts = port.to_json(), dict(port.facts)
        try:
            self._store.begin(record)
        except BaseException:
            if port:
                self._pools.put_back(conf, port)
            raise
        if port:
            self._pools.taken(conf, port)
        return steps, record

    def delete(self, call: Call) -> None:
        """Undo the attachment; what is absent counts as undone. Raises the first error."""
        if call.request.key is None:  # no ADD could have had these names
            return
        with self._locks.held(call.key, call.cancel):
            record = self._store.load(call.key)
            self._revert(*self._undoable(call, record), call, recorded=record is not None)

    def _undoable(self, call: Call, record: Record | None) -> tuple[Plan, Record]:
        """Return what is to be undone: the record's plan, if this version knows it.

        Otherwise it is the steps of every mode that the pod may have had.
        """
        if record and (steps := record.plan()):
            return steps, record
        if record:
            call = replace(call, request=_request_of(record))
        possible = self._networks.possible(call.request)
        key = call.key
        for conf in possible:
            key = self._modes[conf.mode].locate(key, conf, self._node, call.cancel)
        steps = plan.union(self._modes[conf.mode].plan(key, conf) for conf in possible)
        again = _record(call, possible[0], steps)
        again.port = {"id": key.prepared}
        if record:
            again.netns_identity = record.netns_identity
        return steps, again

    def check(self, call: Call) -> None:
        """Compare the attachment with prevResult and with its steps. Raises CheckFailed."""
        conf = self._parse(call)
        if conf.prev is None:
            raise BadConfig("prevResult: required for CHECK")
        self._require_pod(call)
        with self._locks.held(call.key, call.cancel):
            record = self._store.load(call.key)
            if record is None or record.intent:
                raise CheckFailed(f"{call.key} is not attached here")
            if (steps := record.plan()) is None:
                raise CheckFailed(
                    f"{call.key}: was attached by another version of vmlink, which this one cannot "
                    "check; restart the pod"
                )
            conf = replace(conf, mode=record.mode)  # the pod's own, if it has chosen one
            with self._context(record, steps, call) as cx:
                self._compare(conf, record, cx)
                plan.verify(steps.steps, cx)

    def _compare(self, conf: NetConf, record: Record, cx: Context) -> None:
        assert conf.prev is not None
        if self._modes[conf.mode].in_pod(conf):
            check.check_namespace(conf.prev, cx.key.ifname, cx.pod_netlink, conf.chained)
        else:
            check.check_result(conf.prev, cx.key.ifname, record.result)

    def collect(self, call: Call) -> None:
        """Delete the network's attachments that are no longer valid. Raises what went wrong."""
        valid = network.valid_attachments(call.request.conf)
        errors: list[str] = []
        for record in self._store.all():
            if record.network == call.request.conf["name"] and record.key not in valid:
                try:
                    self._collect_one(record.key, call)
                except Exception as e:  # the rest is collected all the same
                    errors.append(f"{record.key}: {e}")
        if call.request.conf.get("ipam"):
            try:
                delegate.collect(delegate.Call.of(call.request), valid)
            except VmlinkError as e:
                if refuses_configuration(e):
                    log.warning("GC passes over IPAM, which an ADD cannot use: %s", e.msg)
                else:
                    errors.append(f"ipam: {e.msg}")
        if errors:
            raise VmlinkError("GC: " + "; ".join(errors))

    def _collect_one(self, key: AttachmentKey, call: Call) -> None:
        with self._locks.held(key, call.cancel):
            if record := self._store.load(key):
                undo = Call(_request_of(record), call.cancel, None, call.notes)
                self._revert(*self._undoable(undo, record), undo)

    def status(self, call: Call) -> None:
        """Answer STATUS. Raises NotReady when an ADD cannot succeed here now."""
        conf = self._parse(call)
        capabilities.require()
        self._modes[conf.mode].ready(conf, self._node)
        self._networks.ready(conf)
        if conf.ipam:
            delegate.status(delegate.Call.of(call.request))

    def _parse(self, call: Call) -> NetConf:
        conf = self._networks.parse(call.request)
        self._pools.seen(call.request.conf)
        return conf

    def _complete(self, record: Record, conf: NetConf, cx: Context) -> Result:
        mode = self._modes[conf.mode]
        result = build_result(mode, conf, cx, record.netns_path)
        record.facts = cx.facts.to_json()
        record.device = build_device(mode, conf, cx, result, record.netns_path)
        record.result = results.dump(result, results.VERSIONS[-1])
        self._store.finish(record)
        return result

    def _revert(self, steps: Plan, record: Record, call: Call, recorded: bool = True) -> None:
        """Undo a plan with the request that made it.

        So an address is released with the configuration that it was taken with. A record that is
        not `recorded` was made up for a DEL.
        """
        with ExitStack() as stack:
            pod = call.pod
            if pod is None and (pod := _reopen(record)):
                stack.enter_context(pod)
            undo = Call(_request_of(record), call.cancel, pod, call.notes)
            cx = stack.enter_context(self._context(record, steps, undo))
            cx.recorded = recorded
            plan.revert(steps, cx, lambda: self._give_back(record, cx))
        self._store.remove(record.key)

    def _give_back(self, record: Record, cx: Context) -> bool:
        whole = bool(record.port) and not record.intent
        return whole and self._pools.give_back(record, cx.host_netlink, cx.timings)

    def _context(self, record: Record, steps: Plan, call: Call) -> Context:
        call.notes.update(network=record.network, mode=record.mode, uplink=record.uplink)
        return Context(
            key=record.key,
            node=self._node,
            host_netlink=self._netlink(),
            pod=call.pod,
            cancel=call.cancel,
            ipam_call=delegate.Call.of(call.request),
            pod_links=steps.pod_links(),
            facts=record.known_facts(),
            timings=call.notes.setdefault("steps", {}),
        )

    def _netlink(self) -> Netlink:
        """Return the worker's socket; a worker is at home in the host's namespace."""
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
        steps=steps.to_json(),
        netns_path=call.request.netns_path,
        netns_identity=call.pod.identity if call.pod else (0, 0),
        stdin=call.request.stdin.decode("utf-8", "replace"),
        env=call.request.env,
    )


def _request_of(record: Record) -> Request:
    """Return the DEL that belongs to the record's ADD."""
    return cni_request.parse({**record.env, "CNI_COMMAND": "DEL"}, record.stdin.encode())


def _reopen(record: Record) -> Namespace | None:
    """Return the record's namespace, unless it is gone and its path perhaps another's by now."""
    try:
        namespace = Namespace.open(record.netns_path)
    except BadEnvironment:
        return None
    if namespace.identity == record.netns_identity:
        return namespace
    namespace.close()
    return None
