"""A bandwidth limit as a token bucket of the kernel.

Sources: tc-tbf(8), net/sched/sch_tbf.c, and for what the numbers mean the CNI bandwidth plugin.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from cni.errors import BadConfig, CheckFailed, NotReady
from cni.kernel import redirect, rtnl_encode, tc_encode
from cni.kernel.netlink import Netlink
from cni.kernel.scratch import in_scratch_namespace
from cni.spec.types import Bandwidth

Rates = tuple[int, int, int, int]  # the fields of Bandwidth

_QUEUE_SECONDS = 0.025  # as the CNI bandwidth plugin
_ROOM = 2 << 16  # bytes: two of the largest packets that a sender leaves to be segmented
_HEADER = 18  # bytes of Ethernet with a VLAN tag


class Limit(NamedTuple):
    """One direction as configured: `rate` in bits per second, `burst` in bits, 0 for no limit."""

    direction: str
    rate: int
    burst: int

    @property
    def bytes_per_second(self) -> int:
        """The rate, rounded up."""
        return -(-self.rate // 8)

    def bucket(self, mtu: int) -> int:
        """Return the bucket's size in bytes. Raises BadConfig if no full frame could ever pass."""
        if self.burst // 8 < mtu + _HEADER:
            raise BadConfig(
                f"bandwidth.{self.direction}Burst: {self.burst} bits are less than a frame at MTU "
                f"{mtu}, so none would pass; give {(mtu + _HEADER) * 8} or more"
            )
        return self.burst // 8

    def tbf(self, index: int, handle: int, mtu: int) -> rtnl_encode.Message:
        """Return the message that puts the bucket at the root of a link. Raises BadConfig.

        Its queue has room for what waits for the rate. The CNI bandwidth plugin adds the whole
        burst to it, and packets wait as long as that takes.
        """
        rate, bucket = self.bytes_per_second, self.bucket(mtu)
        queue = min(int(rate * _QUEUE_SECONDS) + min(bucket, _ROOM), 2**32 - 1)
        return tc_encode.add_tbf(index, handle, rate=rate, burst=bucket, limit=queue)

    def expect(self, netlink: Netlink, name: str, index: int) -> None:
        """Raise CheckFailed if the root of the link is not this limit's."""
        root = netlink.root_qdisc(index)
        if root is None or root.kind != "tbf" or root.rate != self.bytes_per_second:
            there = root.kind if root else "none"
            if root and root.kind == "tbf":
                there = f"{root.rate * 8}"
            raise CheckFailed(
                f"{name}: expected a limit of {self.rate} bit/s by tbf, found {there}"
            )


def limits(rates: Rates) -> tuple[Limit, Limit]:
    """Return the limits of both directions, ingress (towards the pod) first."""
    bandwidth = Bandwidth(*rates)
    return (
        Limit("ingress", bandwidth.ingress_rate, bandwidth.ingress_burst),
        Limit("egress", bandwidth.egress_rate, bandwidth.egress_burst),
    )


def lead_through(index: int, ifb: int) -> rtnl_encode.Message:
    """Return the filter by which all that comes in on a link with a clsact passes an ifb first.

    It is mirred, because before Linux 6.2 an ifb drops what a program redirects.
    """
    return tc_encode.add_mirred_filter(
        index,
        ifb,
        kind=redirect.mirred_kind(),
        priority=redirect.PRIORITY + 1,  # behind what marks the frames of a macvtap
        handle=redirect.IN_OUR_QDISC,
    )


def require() -> None:
    """Raise NotReady when this kernel cannot limit."""
    if reason := _missing():
        _missing.cache_clear()  # a module may be loaded meanwhile
        raise NotReady(f"bandwidth: {reason}; load the kernel's sch_tbf, ifb and act_mirred")


@cache
def _missing() -> str:
    """Return why the kernel cannot limit, empty if it can."""

    def trial(netlink: Netlink) -> str:
        lo, limit = 1, Limit("ingress", 8, _ROOM * 8)
        errors = netlink.attempt(limit.tbf(lo, 0x10000, 0), rtnl_encode.new_ifb("ifb"))
        errors += netlink.attempt(tc_encode.add_clsact(lo), lead_through(lo, lo))
        return "; ".join(error.msg for error in errors if error)

    return in_scratch_namespace(trial)
