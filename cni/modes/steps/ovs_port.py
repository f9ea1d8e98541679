"""A port of Open vSwitch: its rows, and ovs-vswitchd's answer.

Source: ovs-vswitchd.conf.db(5).
"""

from __future__ import annotations

import concurrent.futures
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.facts import Fact
from cni.attach.plan import Kinds, Step
from cni.cancel import Cancel
from cni.errors import DeadlineExceeded, SwitchRefused
from cni.kernel.netlink import Netlink
from cni.modes.steps.links import Nic
from cni.modes.steps.ovs_bridge import Datapath
from cni.modes.steps.vhost_socket import VhostSocket
from cni.ovs import ovn, port_ops
from cni.ovs.operations import Pending
from cni.ovs.port_ops import VHOSTUSER, Port
from cni.spec.types import AttachmentKey, Bandwidth

_EXPLAIN_SECONDS = 1
_LOOK_SECONDS = 0.2  # between two looks whether to give up
_POLICED_SECONDS = 2  # ovs-vswitchd polices a port about 10 ms after it has said that it is made
_NEXT_LOOK_SECONDS = 0.002


@dataclass(frozen=True)
class SentPort(Fact):
    """The port's rows on their way into the database."""

    stored: ClassVar[bool] = False
    pending: Pending


@dataclass(frozen=True)
class OvsPort(Step):
    """The port's rows, which are committed while the next steps work.

    `type` is the Interface's, "" for a link of the kernel. `limits` are the fields of Bandwidth.
    """

    provides: ClassVar[Kinds] = (SentPort,)
    bridge: str
    name: str
    type: str
    vlan: int
    trunk: tuple[int, ...]
    external_ids: tuple[tuple[str, str], ...] = field(compare=False)
    limits: tuple[int, int, int, int] = field(compare=False)
    policed: bool  # takes effect only when a port is made, so no prepared port is policed
    ovn: bool = False

    def required(self) -> Kinds:
        return (Nic, VhostSocket) if self.type == VHOSTUSER else (Nic,)

    def do(self, cx: Context) -> None:
        port = self._port(cx)
        add = port_ops.Add(cx.node.ovs.owner, cx.key, port)
        with _logical_port(cx, port):
            cx.facts.put(SentPort(cx.node.ovs.submit(add)))

    def bind(self, cx: Context) -> None:
        cx.facts.put(SentPort(self._rebind(cx, AttachmentKey.of_prepared(cx.key.prepared), cx.key)))

    def finish(self, cx: Context) -> None:
        pending = cx.facts[SentPort].pending
        while not concurrent.futures.wait([pending.future], _LOOK_SECONDS).done:
            cx.cancel.check()
        pending.wait(0, _late(self.name))

    def renew(self, cx: Context, former: AttachmentKey) -> None:
        cx.node.logical_ports.release(former)
        pending = self._rebind(cx, former, cx.key)
        pending.wait(cx.cancel.remaining(), cx.node.ovs.no_answer())

    def _rebind(self, cx: Context, old: AttachmentKey, new: AttachmentKey) -> Pending:
        port = self._port(cx)
        with _logical_port(cx, port):
            return cx.node.ovs.submit(port_ops.Bind(cx.node.ovs.owner, old, new, port))

    def _port(self, cx: Context) -> Port:
        nic = cx.facts[Nic]
        macs = {} if cx.key.pooled else {"attached-mac": nic.mac}
        port = Port(
            self.bridge,
            self.name,
            self.type,
            self.vlan,
            self.trunk,
            external_ids={**macs, **dict(self.external_ids)},
            bandwidth=Bandwidth(*self.limits) if any(self.limits) else None,
            ovn=self.ovn and not cx.key.pooled,
        )
        if not self.type:  # a link of the kernel has its MTU from us
            return port
        options = {}
        if self.type == VHOSTUSER:
            options = {"vhost-server-path": cx.facts[VhostSocket].path}
        return replace(port, mtu=nic.mtu, options=options)

    def undo(self, cx: Context) -> None:
        cx.node.logical_ports.release(cx.key)
        sent = cx.facts.get(SentPort)
        never_sent = sent is not None and sent.pending.abandon()
        if never_sent and not cx.key.prepared:
            return
        database = cx.node.ovs
        removal = database.submit(port_ops.Remove(database.owner, cx.key))
        removal.wait(cx.cancel.remaining(), database.no_answer())

    def check(self, cx: Context) -> None:
        database = cx.node.ovs
        looked = database.submit(port_ops.Check(cx.key, self._port(cx)))
        looked.wait(cx.cancel.remaining(), database.no_answer())


def _logical_port(cx: Context, port: Port) -> AbstractContextManager[None]:
    """Keep a late ADD from a logical port that a newer sandbox has. Raises AttachmentExists."""
    if not port.ovn:
        return nullcontext()
    return cx.node.logical_ports.taken(port.iface_id, cx.key, cx.cancel.began)


@dataclass(frozen=True)
class OvsReady(Step):
    """Waits until ovs-vswitchd has made the port, and OVN installed the `logical` one, if any."""

    needs: ClassVar[Kinds] = (SentPort, Datapath)
    name: str
    policed: bool
    logical: str = ""

    def do(self, cx: Context) -> None:
        view = cx.node.ovs.look(0)
        try:
            cx.facts[SentPort].pending.wait(
                cx.cancel.remaining(),
                _late(self.name) if view.connected else cx.node.ovs.no_answer(),
            )
        except DeadlineExceeded as e:
            self._explain(cx, e)
        if self.policed:
            self._require_policing(cx)

    def _explain(self, cx: Context, late: DeadlineExceeded) -> None:
        """Raise what says most; only the database's thread knows what OVN has answered."""
        view = cx.node.ovs.look(0)
        if not self.logical or not view.connected:
            raise late
        explanation = ovn.Explain(self.name, self.logical, view.external_ids.get("ovn-remote", ""))
        cx.node.ovs.submit(explanation).wait(_EXPLAIN_SECONDS, late.msg)

    def _require_policing(self, cx: Context) -> None:
        """Raise SwitchRefused: ovs-vswitchd only logs that the kernel refused."""
        if cx.facts[Datapath].userspace:  # which takes its copies before the kernel polices
            raise SwitchRefused(
                f"bandwidth.egressRate: the userspace datapath cannot police {self.name}; use mode "
                "tc or vhostuser, or leave the rate out"
            )
        if not becomes_policed(cx.host_netlink, self.name, cx.cancel):
            raise SwitchRefused(
                f"bandwidth.egressRate: ovs-vswitchd cannot police {self.name}; load the kernel's "
                "act_police and cls_matchall, or leave the rate out"
            )


def becomes_policed(netlink: Netlink, name: str, cancel: Cancel) -> bool:
    """Return whether a filter is on the port's ingress, for which it waits up to two seconds.

    Raises ClientGone, DeadlineExceeded.
    """
    index = netlink.index(name)
    end = time.monotonic() + _POLICED_SECONDS
    while index and not netlink.filters(index):
        if time.monotonic() > end:
            return False
        cancel.check()
        time.sleep(_NEXT_LOOK_SECONDS)
    return index is not None


def _late(name: str) -> str:
    return f"ovs-vswitchd has not made port {name} in time; is it running?"
