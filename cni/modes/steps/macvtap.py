"""A macvtap in the pod's namespace and its node in /dev."""

from __future__ import annotations

import errno as errnos
from dataclasses import dataclass
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.facts import Fact
from cni.attach.plan import Kinds
from cni.errors import AttachmentExists, BadConfig, CheckFailed, VmlinkError
from cni.kernel import macvtap, redirect, rtnl_encode
from cni.kernel.netlink import Exists, Netlink, NetlinkError
from cni.kernel.rtnl_decode import LinkInfo
from cni.modes.steps.guard import hang_guard
from cni.modes.steps.links import (
    IN_POD,
    Nic,
    PodLink,
    expect_link,
    expect_nic,
    expect_up,
    no_link_local,
    refuse_advertisements,
)


@dataclass(frozen=True)
class MacvtapDevice(Fact):
    """The macvtap's ifindex, its device number, and whether its node in /dev had to be made."""

    ifindex: int
    device_number: int
    node_made: bool


@dataclass(frozen=True)
class MacvtapLink(PodLink):
    """A macvtap and its node in /dev.

    `lower` is the link below it: a NIC of the host's namespace or, with `chained`, the interface of
    the plugin before us. `mac` "" and `mtu` 0 take the lower link's. The namespace's own stack gets
    nothing of what comes in: as long as no process has a macvtap open, the kernel gives its frames
    to the stack, which has the guest's addresses and would answer.
    """

    provides: ClassVar[Kinds] = (Nic, MacvtapDevice)
    name: str
    lower: str
    chained: bool
    mode: str
    mac: str
    mtu: int
    queues: int
    owner: int | None
    group: int | None

    def link(self) -> str:
        return self.name

    def do(self, cx: Context) -> None:
        lower = self._lower(cx)
        index = self._make(cx, lower)
        mac, mtu = self.mac or lower.mac, self.mtu or lower.mtu
        cx.facts.put(Nic(mac, mtu))
        messages = [*redirect.ignore(index), *no_link_local(index, mtu)]
        if self.mode == "passthru" and self.mac:
            # The kernel has given it the lower link's, whatever was asked for.
            messages.append(rtnl_encode.set_link(index, mac=self.mac))
        try:
            cx.pod_netlink.batch(*messages)
            hang_guard(cx, cx.pod_netlink, index)
            cx.pod_netlink.batch(rtnl_encode.set_link(index, up=True))
        except NetlinkError as e:
            if e.errno not in (errnos.EADDRINUSE, errnos.EBUSY):  # kernels differ
                raise
            raise BadConfig(
                f"mac: {mac} is that of {self.lower} or of another link on it; choose another"
            ) from e

    def _netlink(self, cx: Context) -> Netlink:
        return cx.pod_netlink if self.chained else cx.host_netlink

    def _lower(self, cx: Context) -> LinkInfo:
        link = self._netlink(cx).link(self.lower)
        if link is None:
            key = "prevResult" if self.chained else "master"
            raise BadConfig(f"{key}: there is no interface {self.lower}; name one that is there")
        if self.mtu > link.mtu:
            raise BadConfig(f"mtu: {self.mtu} is above that of {self.lower}, {link.mtu}; lower it")
        return link

    def _make(self, cx: Context, lower: LinkInfo) -> int:
        numbers = cx.key.ifindexes
        for index in numbers:
            if self._make_link(cx, lower.index, index) and self._claim(cx, index):
                return index
        raise VmlinkError(
            f"{self.name}: the ifindexes {numbers[0]} to {numbers[-1]} are all taken; delete "
            "macvtaps that nobody uses"
        )

    def _make_link(self, cx: Context, lower: int, index: int) -> bool:
        """Make the link; return False if the ifindex is taken."""
        message = rtnl_encode.new_macvtap(
            self.name,
            index=index,
            link=lower,
            mode=self.mode,
            mac=self.mac,
            mtu=self.mtu,
            group=cx.key.group,
            queues=self.queues if self.queues > 1 else None,
            ns_fd=cx.pod.fd,
        )
        try:
            self._netlink(cx).batch(message)
        except NetlinkError as e:
            if e.errno not in (errnos.EEXIST, errnos.EBUSY, errnos.EINVAL):
                raise
            if cx.pod_netlink.index(self.name):
                raise AttachmentExists(
                    f"interface {self.name} exists already; DEL comes first"
                ) from e
            if cx.pod_netlink.link(index=index):
                return False
            raise self._unfit() from e
        return True

    def _unfit(self) -> BadConfig:
        if self.chained:
            return BadConfig(
                f"prevResult: {self.lower} cannot carry a macvtap: it is a macvlan, or the port of "
                "a bridge; use mode tc"
            )
        return BadConfig(
            f"master: {self.lower} cannot carry a macvtap of mode {self.mode}: it is no Ethernet "
            "link, the port of a bridge or bond, or shared with others in or beside mode passthru; "
            "name another, or another macvtap.mode"
        )

    def _claim(self, cx: Context, index: int) -> bool:
        """Have the node in /dev; return False if another namespace's macvtap has the ifindex."""
        with cx.in_pod():
            number = macvtap.device_number(self.name, index)
            if self.chained:  # of the pod's own interface Configure does it
                refuse_advertisements(self.name)
        try:
            made = macvtap.claim(index, number, self.owner, self.group)
        except Exists:
            cx.node.deleter.delete(cx.pod, None, [index], cx.cancel.remaining())
            return False
        cx.facts.put(MacvtapDevice(index, number, made))
        return True

    def undo(self, cx: Context) -> None:
        super().undo(cx)
        for index in cx.key.ifindexes:
            macvtap.discard(index)
        device = cx.facts.get(MacvtapDevice)
        if cx.pod_or_none is None and device and device.node_made:
            # The kernel may still be at work on the end of the namespace.
            macvtap.remove(device.ifindex)

    def check(self, cx: Context) -> None:
        link, device = expect_link(cx.pod_netlink, self.name, IN_POD), cx.facts[MacvtapDevice]
        index = device.ifindex
        if (link.index, link.group) != (index, cx.key.group):
            raise CheckFailed(f"{self.name}: expected the link that ADD made, found another")
        expect_nic(link, cx.facts[Nic])
        expect_up(link, cx.facts[Nic].mtu)
        if not redirect.ignores(cx.pod_netlink, index):
            raise CheckFailed(
                f"{self.name}: expected a filter that keeps frames from the namespace's stack, "
                "found none"
            )
        if not macvtap.is_claimed(index, device.device_number, self.owner, self.group):
            raise CheckFailed(
                f"{macvtap.node_path(index)}: expected the device of {self.name} with the owner "
                "and mode that ADD gave it, found another"
            )
