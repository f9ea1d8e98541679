"""Where a pod's addresses come from: an IPAM plugin, or kube-ovn, which has chosen them already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from cni.attach.context import Context
from cni.attach.plan import Plan, Step
from cni.config.network import NetConf
from cni.ipam.reservations import Claim, Claims
from cni.modes.steps.common import Addresses
from cni.spec.types import IP, AttachmentKey, Lease, Result, Route


def addresses(conf: NetConf) -> tuple[Step, ...]:
    """The step that brings the addresses; none for a network of layer 2 only."""
    if conf.kubeovn:
        lease = conf.lease or Lease()
        return (
            Given(
                lease.holder,
                lease.switch,
                tuple((ip.address, ip.gateway) for ip in lease.ips),
                tuple((route.dst, route.gw) for route in lease.routes),
            ),
        )
    return (Addresses(),) if conf.ipam else ()


@dataclass(frozen=True)
class Given(Step):
    """The addresses of a Lease, which no other pod of this node may have meanwhile."""

    background: ClassVar[bool] = True
    holder: str
    switch: str
    ips: tuple[tuple[str, str], ...]  # (address with prefix length, gateway)
    routes: tuple[tuple[str, str], ...]  # (destination, gateway)

    def claim(self, key: AttachmentKey, claims: Claims) -> None:
        bare = (address.partition("/")[0] for address, _ in self.ips)
        claims.take(Claim(key, self.holder), self.switch, bare)

    def do(self, cx: Context) -> None:
        self.claim(cx.key, cx.node.claims)
        ips = tuple(IP(address, gateway) for address, gateway in self.ips)
        given = Result(ips=ips, routes=tuple(Route(dst, gw) for dst, gw in self.routes))
        cx.pending_ipam = lambda _seconds: given

    def undo(self, cx: Context) -> None:
        cx.node.claims.release(cx.key)


def recall(key: AttachmentKey, plan: Mapping[str, Any], claims: Claims) -> None:
    """What the attachment of a former process holds. Raises KeyError, TypeError (a foreign plan),
    TryAgain (two have the same)."""
    for step in Plan.from_json(plan).bind:
        if isinstance(step, Given):
            step.claim(key, claims)
