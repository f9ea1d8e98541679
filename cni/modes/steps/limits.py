"""Bandwidth by token buckets: what a link sends waits at its root qdisc, and what it receives is
led through an ifb, at whose root it waits. Where they are, neither guest nor container can reach.

Sources: tc-tbf(8), net/sched/sch_tbf.c, drivers/net/ifb.c, and for what the numbers mean the CNI
bandwidth plugin.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cache
from typing import NamedTuple

from cni.attach.context import Context
from cni.attach.plan import Step
from cni.config.network import Bandwidth, NetConf
from cni.errors import AttachmentExists, BadConfig, CheckFailed, NotReady
from cni.kernel import redirect, rtnl_encode, tc_encode
from cni.kernel.netlink import Exists, Netlink
from cni.kernel.scratch import in_scratch_namespace
from cni.modes.steps.links import expect_link, need_index, remove_pod_link, silent

Rates = tuple[int, int, int, int]  # the fields of Bandwidth

_QUEUE_SECONDS = 0.025  # as the CNI bandwidth plugin
_ROOM = 2 << 16  # bytes: two of the largest packets that a sender leaves to be segmented
_HEADER = 18  # bytes of Ethernet with a VLAN tag


class Limit(NamedTuple):
    """One direction, as configured: `rate` in bits per second, `burst` in bits, 0: no limit."""

    way: str
    rate: int
    burst: int

    @property
    def bytes_per_second(self) -> int:
        return -(-self.rate // 8)

    def bucket(self, mtu: int) -> int:
        """In bytes. Raises BadConfig if no full frame could ever pass."""
        if self.burst // 8 < mtu + _HEADER:
            raise BadConfig(
                f"bandwidth.{self.way}Burst: {self.burst} bits are less than a frame at MTU {mtu}, "
                f"which none would pass; give {(mtu + _HEADER) * 8} or more"
            )
        return self.burst // 8

    def tbf(self, index: int, handle: int, mtu: int) -> rtnl_encode.Message:
        """Its queue is for what waits for the rate. The CNI bandwidth plugin adds the whole burst
        to it, and packets wait as long as that takes."""
        rate, bucket = self.bytes_per_second, self.bucket(mtu)
        queue = min(int(rate * _QUEUE_SECONDS) + min(bucket, _ROOM), 2**32 - 1)
        return tc_encode.add_tbf(index, handle, rate=rate, burst=bucket, limit=queue)

    def expect(self, netlink: Netlink, name: str, index: int) -> None:
        """Raises CheckFailed if the root of the link is not this limit's."""
        found = netlink.root_qdisc(index)
        if found is None or found.kind != "tbf" or found.rate != self.bytes_per_second:
            is_there = found.kind if found else "none"
            if found and found.kind == "tbf":
                is_there = f"{found.rate * 8}"
            raise CheckFailed(
                f"{name}: expected a limit of {self.rate} bit/s by tbf, found {is_there}"
            )


def between(conf: NetConf, ifname: str, tap: str, lasting: bool) -> tuple[Step, ...]:
    """For an interface and a tap that are redirected to each other in the pod's namespace. One
    that stays always has the step, so that a DEL that knows of no bandwidth ends it as well."""
    rates = _rates(conf) or (0, 0, 0, 0)
    return (Shape(ifname, tap, lasting, rates),) if lasting or any(rates) else ()


def alone(conf: NetConf, link: str, *, in_pod: bool = False) -> tuple[Step, ...]:
    """For a port of a bridge in the host's namespace, or a macvtap in the pod's."""
    rates = _rates(conf)
    return (ShapeLink(link, in_pod, rates),) if rates else ()


def ready(conf: NetConf) -> None:
    """STATUS: raises NotReady when this kernel cannot limit."""
    if _rates(conf) and (reason := _missing()):
        raise NotReady(f"bandwidth: {reason}; load the kernel's sch_tbf, ifb and act_mirred")


def _rates(conf: NetConf) -> Rates | None:
    """None where nothing is limited here."""
    if conf.bandwidth is None or conf.switch_limits:
        return None
    return astuple(conf.bandwidth)


@dataclass(frozen=True)
class Shape(Step):
    """Two redirected links: what leaves by the tap is the guest's ingress, what leaves by the
    interface its egress. `lasting`: the interface is not ours, and the undo clears its root."""

    ifname: str
    tap: str
    lasting: bool
    bandwidth: Rates

    def _limited(self) -> list[tuple[str, Limit]]:
        ingress, egress = _limits(self.bandwidth)
        return [(n, x) for n, x in ((self.ifname, egress), (self.tap, ingress)) if x.rate]

    def do(self, cx: Context) -> None:
        netlink, handle, mtu = cx.pod_netlink, cx.key.qdisc, cx.facts["mtu"]
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
            link = expect_link(cx.pod_netlink, name, "in the pod's namespace")
            limit.expect(cx.pod_netlink, name, link.index)


@dataclass(frozen=True)
class ShapeLink(Step):
    """A link alone. What a port in the host's namespace sends is the pod's ingress, what it
    receives the pod's egress; for a link in the pod's namespace (`in_pod`) it is the other way.

    The ifb goes with the link and by the link's undo, so that a DEL finds it that does not know
    of the bandwidth. mirred, because before Linux 6.2 an ifb drops what a program redirects.
    """

    link: str
    in_pod: bool
    bandwidth: Rates

    def _limits(self) -> tuple[Limit, Limit]:
        """(of what the link sends, of what it receives)."""
        ingress, egress = _limits(self.bandwidth)
        return (egress, ingress) if self.in_pod else (ingress, egress)

    def _netlink(self, cx: Context) -> Netlink:
        return cx.pod_netlink if self.in_pod else cx.host_netlink

    def do(self, cx: Context) -> None:
        netlink = self._netlink(cx)
        sent, received = self._limits()
        index = need_index(netlink, self.link)
        messages = [sent.tbf(index, cx.key.qdisc, cx.facts["mtu"])] if sent.rate else []
        if received.rate:
            messages += self._lead_through_ifb(cx, index, received)
        netlink.batch(*messages)

    def _lead_through_ifb(self, cx: Context, index: int, limit: Limit) -> list[rtnl_encode.Message]:
        netlink, name, mtu = self._netlink(cx), cx.key.ifb_link, cx.facts["mtu"]
        try:
            netlink.batch(rtnl_encode.new_ifb(name, mtu, cx.key.group if self.in_pod else 0))
        except Exists as e:
            raise AttachmentExists(f"interface {name} exists already; DEL comes first") from e
        ifb = need_index(netlink, name)
        return [
            *silent(ifb, mtu),
            limit.tbf(ifb, cx.key.qdisc, mtu),
            rtnl_encode.set_link(ifb, up=True),
            *([] if self.in_pod else [tc_encode.add_clsact(index)]),  # a macvtap has one already
            _through(index, ifb),
        ]

    def undo(self, cx: Context) -> None:
        if self.in_pod:  # where a macvtap goes by itself, with the link below it
            remove_pod_link(cx, cx.key.ifb_link)

    def check(self, cx: Context) -> None:
        netlink, where = self._netlink(cx), f"in the {'pod' if self.in_pod else 'host'}'s namespace"
        sent, received = self._limits()
        index = expect_link(netlink, self.link, where).index
        if sent.rate:
            sent.expect(netlink, self.link, index)
        if received.rate:
            ifb = expect_link(netlink, cx.key.ifb_link, where).index
            received.expect(netlink, cx.key.ifb_link, ifb)
            if all(found.redirect != ifb for found in netlink.filters(index)):
                raise CheckFailed(f"{self.link}: is not led through {cx.key.ifb_link}")


def _through(index: int, ifb: int) -> rtnl_encode.Message:
    """All that comes in on a link with a clsact goes through the ifb first."""
    return tc_encode.add_mirred_filter(
        index,
        ifb,
        kind=redirect.mirred_kind(),
        priority=redirect.PRIORITY + 1,  # behind what marks the frames of a macvtap
        handle=redirect.IN_OUR_QDISC,
    )


def _limits(bandwidth: Rates) -> tuple[Limit, Limit]:
    """(ingress, egress)."""
    rates = Bandwidth(*bandwidth)
    return (
        Limit("ingress", rates.ingress_rate, rates.ingress_burst),
        Limit("egress", rates.egress_rate, rates.egress_burst),
    )


@cache
def _missing() -> str:
    """Empty if the kernel can limit."""

    def trial(netlink: Netlink) -> str:
        lo, limit = 1, Limit("ingress", 8, _ROOM * 8)
        tried = netlink.attempt(limit.tbf(lo, 0x10000, 0), rtnl_encode.new_ifb("ifb"))
        tried += netlink.attempt(tc_encode.add_clsact(lo), _through(lo, lo))
        return "; ".join(error.msg for error in tried if error)

    return in_scratch_namespace(trial)
