"""The steps of mode macvtap: the link with its device node, and what another plugin's gives it."""

from __future__ import annotations

import errno as errnos
from dataclasses import dataclass

from cni.attach.context import Context
from cni.attach.plan import Step
from cni.errors import AttachmentExists, BadConfig, CheckFailed, VmlinkError
from cni.kernel import macvtap, redirect, rtnl_encode
from cni.kernel.netlink import Exists, Netlink, NetlinkError
from cni.kernel.rtnl_decode import LinkInfo
from cni.modes.steps.common import remove_redirect
from cni.modes.steps.links import expect_link, expect_up, need_index, remove_pod_link, silent


@dataclass(frozen=True)
class MacvtapLink(Step):
    """A macvtap in the pod's namespace and its node in /dev.

    `lower` is the link below it: a NIC of the host's namespace or, with `chained`, the interface
    of the plugin before us. `mac` "" and `mtu` 0 take the lower link's. The namespace's own stack
    hears nothing of what comes in: as long as nobody has a macvtap open, the kernel gives it to
    the stack, which has the guest's addresses and would answer.
    """

    name: str
    lower: str
    chained: bool
    mode: str
    mac: str
    mtu: int
    queues: int
    owner: int | None
    group: int | None

    def links(self) -> tuple[str, ...]:
        return (self.name,)

    def do(self, cx: Context) -> None:
        lower = self._lower(cx)
        index = self._make(cx, lower)
        mac, mtu = self.mac or lower.mac, self.mtu or lower.mtu
        cx.facts.update(mac=mac, mtu=mtu)
        messages = [*redirect.ignore(index), *silent(index, mtu)]
        if self.mode == "passthru" and self.mac:
            # The kernel has given it the lower link's, whatever was asked for.
            messages.append(rtnl_encode.set_link(index, mac=self.mac))
        try:
            cx.pod_netlink.batch(*messages, rtnl_encode.set_link(index, up=True))
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
            where = "prevResult" if self.chained else "master"
            raise BadConfig(f"{where}: there is no interface {self.lower}; name one that is there")
        if self.mtu > link.mtu:
            raise BadConfig(f"mtu: {self.mtu} is above that of {self.lower}, {link.mtu}")
        return link

    def _make(self, cx: Context, lower: LinkInfo) -> int:
        numbers = cx.key.ifindexes
        for index in numbers:
            if self._make_link(cx, lower.index, index) and self._claim(cx, index):
                return index
        raise VmlinkError(f"{self.name}: {numbers[0]} to {numbers[-1]} are all taken as ifindexes")

    def _make_link(self, cx: Context, lower: int, index: int) -> bool:
        """False if the ifindex is taken."""
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
                f"prevResult: {self.lower} cannot carry a macvtap, as it is a macvlan, or the "
                "port of a bridge; use mode tc"
            )
        return BadConfig(
            f"master: {self.lower} cannot carry a macvtap of mode {self.mode}: it is no Ethernet "
            "link, the port of a bridge or bond, or shared with others in or beside mode passthru"
        )

    def _claim(self, cx: Context, index: int) -> bool:
        """False if the macvtap of another namespace has the same ifindex."""
        with cx.in_pod():
            number = macvtap.device_number(self.name, index)
        try:
            made = macvtap.claim(index, number, self.owner, self.group)
        except Exists:
            cx.reaper.delete(cx.pod, None, [index], cx.cancel.remaining())
            return False
        cx.facts.update(ifindex=index, device_number=number, node_made=made)
        return True

    def undo(self, cx: Context) -> None:
        remove_pod_link(cx, self.name)
        for index in cx.key.ifindexes:
            macvtap.discard(index)
        if cx.pod_or_none is None and cx.facts.get("node_made"):
            # The kernel may still be at work on the end of the namespace.
            macvtap.remove(cx.facts["ifindex"])

    def check(self, cx: Context) -> None:
        link = expect_link(cx.pod_netlink, self.name, "in the pod's namespace")
        index, number, mtu = (cx.facts[k] for k in ("ifindex", "device_number", "mtu"))
        if (link.index, link.group) != (index, cx.key.group):
            raise CheckFailed(f"{self.name}: is another link than the one that ADD made")
        expect_up(link, mtu)
        if not redirect.ignores(cx.pod_netlink, index):
            raise CheckFailed(f"{self.name}: the filter that keeps its namespace silent is gone")
        if not macvtap.is_claimed(index, number, self.owner, self.group):
            raise CheckFailed(
                f"{macvtap.node_path(index)}: is not the device of {self.name}, or has another "
                "owner or mode than ADD gave it"
            )


@dataclass(frozen=True)
class Divert(Step):
    """What arrives at the interface of the plugin before us comes in on the macvtap instead.

    The macvlan code below the macvtap would do that too, but it gives multicast to the namespace
    as well, and puts fragments of multicast packets together.
    """

    ifname: str
    tap: str

    def do(self, cx: Context) -> None:
        netlink = cx.pod_netlink
        redirect.divert(netlink, need_index(netlink, self.ifname), need_index(netlink, self.tap))

    def undo(self, cx: Context) -> None:
        remove_redirect(cx, self.ifname, ("cls_bpf",))

    def check(self, cx: Context) -> None:
        netlink = cx.pod_netlink
        interface = expect_link(netlink, self.ifname, "in the pod's namespace").index
        tap = expect_link(netlink, self.tap, "in the pod's namespace").index
        redirect.check_way("cls_bpf", netlink, interface, tap)
