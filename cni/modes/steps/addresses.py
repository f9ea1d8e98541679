"""The pod's addresses: from an IPAM plugin, or from kube-ovn, which has chosen them already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cni.attach.context import Context, PromisedAddresses
from cni.attach.facts import Fact
from cni.attach.plan import Kinds, Step
from cni.config.network import NetConf
from cni.errors import AttachmentExists, DeadlineExceeded, VmlinkError, refuses_configuration
from cni.ipam import delegate
from cni.ipam.reservations import Reservation
from cni.spec.types import IP, Lease, Result, Route

_GRACE = 5  # seconds for an IPAM plugin to end an ADD that is to be undone


def address_steps(conf: NetConf) -> tuple[Step, ...]:
    """Return the step that brings the addresses; none for a layer-2 network."""
    if conf.kubeovn:
        lease = conf.lease or Lease()
        return (
            LeasedAddresses(
                lease.holder,
                lease.switch,
                tuple((ip.address, ip.gateway) for ip in lease.ips),
                tuple((route.dst, route.gw) for route in lease.routes),
            ),
        )
    return (Addresses(),) if conf.ipam else ()


@dataclass(frozen=True)
class RefusedAddresses(Fact):
    """The IPAM plugin refused. `taken`: the addresses belong to an attachment that lives."""

    taken: bool


@dataclass(frozen=True)
class Addresses(Step):
    """Addresses of the IPAM plugin, whose ADD runs while the next steps make links."""

    provides: ClassVar[Kinds] = (PromisedAddresses,)
    background: ClassVar[bool] = True

    def do(self, cx: Context) -> None:
        try:
            cx.facts.put(PromisedAddresses(delegate.begin_add(cx.ipam_call)))
        except VmlinkError as e:
            cx.facts.put(RefusedAddresses(taken=isinstance(e, AttachmentExists)))
            raise

    def undo(self, cx: Context) -> None:
        refused = cx.facts.get(RefusedAddresses)
        if refused and refused.taken:
            return
        nothing_to_release = refused is not None or self._refuses(cx)
        try:
            delegate.delete(cx.ipam_call)
        except VmlinkError as e:
            unheard_of = not cx.recorded and refuses_configuration(e)
            if not (nothing_to_release or unheard_of):
                raise
            cx.log.info("%s: DEL after a refused ADD of the IPAM plugin: %s", cx.key, e.msg)

    def _refuses(self, cx: Context) -> bool:
        """Wait for an ADD that is under way; return whether it is refused.

        A plugin that is killed while it reserves may leave what its DEL does not find.
        """
        promised = cx.facts.get(PromisedAddresses)
        if promised is None:
            return False
        try:
            promised.wait(_GRACE)
        except DeadlineExceeded:
            return False
        except VmlinkError:
            return True
        return False

    def check(self, cx: Context) -> None:
        delegate.check(cx.ipam_call)


@dataclass(frozen=True)
class LeasedAddresses(Step):
    """Addresses that kube-ovn has chosen and no other pod of this node may have meanwhile.

    `holder` is the logical port, `switch` the logical switch; `ips` are pairs of an address with
    its prefix length and a gateway, `routes` pairs of destination and gateway.
    """

    provides: ClassVar[Kinds] = (PromisedAddresses,)
    background: ClassVar[bool] = True
    holder: str
    switch: str
    ips: tuple[tuple[str, str], ...]
    routes: tuple[tuple[str, str], ...]

    def do(self, cx: Context) -> None:
        self.resume(cx)
        result = Result(
            ips=tuple(IP(address, gateway) for address, gateway in self.ips),
            routes=tuple(Route(dst, gw) for dst, gw in self.routes),
        )
        cx.facts.put(PromisedAddresses(lambda _seconds: result))

    def resume(self, cx: Context) -> None:
        bare = (address.partition("/")[0] for address, _ in self.ips)
        cx.node.reservations.take(Reservation(cx.key, self.holder), self.switch, bare)

    def undo(self, cx: Context) -> None:
        cx.node.reservations.release(cx.key)
