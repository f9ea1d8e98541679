"""Bandwidth limits by token buckets, where neither guest nor container can reach them.

What a link sends waits at its root qdisc; what it receives is led through an ifb, at whose root it
waits. Sources: tc-tbf(8), drivers/net/ifb.c.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.plan import Kinds, Step
from cni.errors import AttachmentExists, BadConfig, CheckFailed
from cni.kernel import rtnl_encode, tc_encode
from cni.kernel.netlink import Exists, Netlink
from cni.modes.steps.links import (
    IN_HOST,
    IN_POD,
    Nic,
    expect_link,
    need_index,
    no_link_local,
    remove_host_link,
    remove_pod_link,
)
from cni.modes.steps.token_bucket import Limit, Rates, lead_through, limits
from cni.spec.types import Bandwidth

_NO_LIMIT: Rates = (0, 0, 0, 0)


def rates_of(bandwidth: Bandwidth | None) -> Rates:
    """Return the limits as steps keep them."""
    return astuple(bandwidth) if bandwidth else _NO_LIMIT


@dataclass(frozen=True)
class RedirectLimits(Step):
    """Limits on two links that are redirected to each other in the pod's namespace.

    What leaves by the tap is the guest's ingress, what leaves by the interface its egress.
    `lasting`: the interface is another plugin's, and the undo clears its root.
    """

    needs: ClassVar[Kinds] = (Nic,)
    ifname: str
    tap: str
    lasting: bool
    bandwidth: Rates

    def _limited(self) -> list[tuple[str, Limit]]:
        ingress, egress = limits(self.bandwidth)
        return [(n, x) for n, x in ((self.ifname, egress), (self.tap, ingress)) if x.rate]

    def do(self, cx: Context) -> None:
        netlink, handle, mtu = cx.pod_netlink, cx.key.qdisc, cx.facts[Nic].mtu
        limited = [(need_index(netlink, name), limit) for name, limit in self._limited()]
        try:
            netlink.batch(*(limit.tbf(index, handle, mtu) for index, limit in limited))
        except Exists as e:
            raise BadConfig(
                f"bandwidth: {self.ifname} has a root qdisc already; leave the limit to the plugin "
                "that made it, or take that one out of the chain"
            ) from e

    def undo(self, cx: Context) -> None:
        if not self.lasting or cx.pod_or_none is None:
            return
        if index := cx.pod_netlink.index(self.ifname):
            root = cx.pod_netlink.root_qdisc(index)
            if root and (root.kind, root.handle) == ("tbf", cx.key.qdisc):
                cx.pod_netlink.batch(tc_encode.del_tbf(index, cx.key.qdisc))

    def check(self, cx: Context) -> None:
        for name, limit in self._limited():
            link = expect_link(cx.pod_netlink, name, IN_POD)
            limit.expect(cx.pod_netlink, name, link.index)


@dataclass(frozen=True)
class LinkLimits(Step):
    """Limits on one link: a port in the host's namespace, or with `in_pod` one in the pod's.

    What a port in the host's namespace sends is the pod's ingress, what it receives the pod's
    egress; for a link in the pod's namespace it is the other way round. The step is there without
    limits, too: a DEL that knows of no bandwidth removes the ifb as well.
    """

    needs: ClassVar[Kinds] = (Nic,)
    link: str
    in_pod: bool
    bandwidth: Rates

    def _directions(self) -> tuple[Limit, Limit]:
        """Return the limits of what the link sends and of what it receives."""
        ingress, egress = limits(self.bandwidth)
        return (egress, ingress) if self.in_pod else (ingress, egress)

    def _netlink(self, cx: Context) -> Netlink:
        return cx.pod_netlink if self.in_pod else cx.host_netlink

    def do(self, cx: Context) -> None:
        sent, received = self._directions()
        if not sent.rate and not received.rate:
            return
        netlink, mtu = self._netlink(cx), cx.facts[Nic].mtu
        index = need_index(netlink, self.link)
        messages = [sent.tbf(index, cx.key.qdisc, mtu)] if sent.rate else []
        if received.rate:
            messages += self._by_ifb(cx, index, received, mtu)
        netlink.batch(*messages)

    def _by_ifb(self, cx: Context, index: int, limit: Limit, mtu: int) -> list[rtnl_encode.Message]:
        netlink, ifb_link = self._netlink(cx), cx.key.ifb_link
        group = cx.key.group if self.in_pod else 0
        try:
            netlink.batch(rtnl_encode.new_ifb(ifb_link, mtu, group))
        except Exists as e:
            raise AttachmentExists(f"interface {ifb_link} exists already; DEL comes first") from e
        ifb = need_index(netlink, ifb_link)
        netlink.attempt(tc_encode.add_clsact(index))  # a macvtap and a guarded tap have one already
        return [
            *no_link_local(ifb, mtu),
            limit.tbf(ifb, cx.key.qdisc, mtu),
            rtnl_encode.set_link(ifb, up=True),
            lead_through(index, ifb),
        ]

    def undo(self, cx: Context) -> None:
        if self.in_pod:
            remove_pod_link(cx, cx.key.ifb_link)
        else:
            remove_host_link(cx, cx.key.ifb_link)

    def check(self, cx: Context) -> None:
        sent, received = self._directions()
        if not sent.rate and not received.rate:
            return
        netlink, where = self._netlink(cx), IN_POD if self.in_pod else IN_HOST
        index = expect_link(netlink, self.link, where).index
        if sent.rate:
            sent.expect(netlink, self.link, index)
        if received.rate:
            ifb = expect_link(netlink, cx.key.ifb_link, where).index
            received.expect(netlink, cx.key.ifb_link, ifb)
            if all(each.redirect != ifb for each in netlink.filters(index)):
                raise CheckFailed(
                    f"{self.link}: expected a redirect to {cx.key.ifb_link}, found none"
                )
