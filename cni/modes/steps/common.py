"""The steps that most modes have: addresses, tap, configuration, redirect, a chained interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.plan import Step
from cni.errors import AttachmentExists, BadConfig, DeadlineExceeded, VmlinkError
from cni.ipam import delegate
from cni.kernel import redirect, rtnl_encode, tuntap
from cni.kernel.netlink import Exists
from cni.modes.steps.links import (
    MIN_MTU_V6,
    can_silence,
    expect_link,
    expect_up,
    need_index,
    remove_pod_link,
    silent,
    write_sysctl,
)

_GRACE = 5  # seconds for an IPAM plugin to end an ADD that is to be undone


@dataclass(frozen=True)
class Addresses(Step):
    """The IPAM plugin. Its ADD runs while the steps after this one make links."""

    background: ClassVar[bool] = True

    def do(self, cx: Context) -> None:
        try:
            cx.pending_ipam = delegate.begin_add(cx.ipam_call)
        except AttachmentExists:
            cx.facts["address_is_anothers"] = True
            raise
        except VmlinkError:
            cx.facts["address_refused"] = True
            raise

    def undo(self, cx: Context) -> None:
        if cx.facts.get("address_is_anothers"):
            return
        refused = self._refused(cx)
        try:
            delegate.delete(cx.ipam_call)
        except VmlinkError as e:
            if not refused:
                raise
            cx.log.info("DEL after a refused ADD of addresses: %s", e.msg)

    def _refused(self, cx: Context) -> bool:
        """Whether there is nothing to release. Waits for an ADD that is under way: a plugin
        that is killed while it reserves may leave what its DEL does not find."""
        if cx.pending_ipam:
            try:
                cx.pending_ipam(_GRACE)
            except DeadlineExceeded:
                return False
            except VmlinkError:
                return True
        return bool(cx.facts.get("address_refused"))

    def check(self, cx: Context) -> None:
        delegate.check(cx.ipam_call)


@dataclass(frozen=True)
class Chain(Step):
    """The interface of the plugin before us, which stays that plugin's."""

    ifname: str

    def do(self, cx: Context) -> None:
        link = cx.pod_netlink.link(self.ifname)
        if link is None:
            raise BadConfig(f"prevResult: {self.ifname} is not in the pod's namespace")
        cx.facts.update(mac=link.mac, mtu=link.mtu)

    def check(self, cx: Context) -> None:
        expect_link(cx.pod_netlink, self.ifname, "in the pod's namespace")


@dataclass(frozen=True)
class Tap(Step):
    """A persistent tap in the pod's namespace, with vnet_hdr, one pair or several.

    It is made under the derived name and takes `name` together with our group, so that an
    undo never removes somebody else's tap.
    """

    name: str
    queues: int
    owner: int | None
    group: int | None

    def links(self) -> tuple[str, ...]:
        return (self.name,)

    def do(self, cx: Context) -> None:
        derived = cx.key.tap_link
        # The kernel lets everybody open a tap that has neither an owner nor a group.
        owner = 0 if self.owner is None and self.group is None else self.owner
        with cx.in_pod():
            index = tuntap.create_tap(derived, queues=self.queues, owner=owner, group=self.group)
        mac = cx.key.mac("tap")
        cx.facts["tap_mac"] = mac
        named = rtnl_encode.set_link(
            index,
            mtu=cx.facts["mtu"],
            mac=mac,
            group=cx.key.group,
            name=None if self.name == derived else self.name,
            addrgenmode_none=can_silence(cx.facts["mtu"]),
        )
        try:
            cx.pod_netlink.batch(named, rtnl_encode.set_link(index, up=True))
        except Exists as e:
            raise BadConfig(f"tap.name: {self.name} exists in the pod's namespace") from e

    def undo(self, cx: Context) -> None:
        remove_pod_link(cx, self.name)
        remove_pod_link(cx, cx.key.tap_link)

    def check(self, cx: Context) -> None:
        link = expect_link(cx.pod_netlink, self.name, "in the pod's namespace")
        expect_up(link, cx.facts["mtu"])


@dataclass(frozen=True)
class Configure(Step):
    """Name, addresses and routes, as CNI promised them. With `silenced` the interface is the
    guest's: its namespace neither claims a link-local address nor probes for duplicates."""

    ifname: str
    silenced: bool

    def do(self, cx: Context) -> None:
        index = need_index(cx.pod_netlink, self.ifname)
        addresses = cx.ipam()
        if any(":" in ip.address for ip in addresses.ips):
            with cx.in_pod():
                _enable_ipv6(self.ifname, cx.facts["mtu"])
        gateways = {":" in ip.gateway: ip.gateway for ip in reversed(addresses.ips) if ip.gateway}
        messages = silent(index, cx.facts["mtu"]) if self.silenced else []
        messages.append(rtnl_encode.set_link(index, up=True))
        messages += [rtnl_encode.add_address(index, ip.address) for ip in addresses.ips]
        for route in addresses.routes:
            messages.append(
                rtnl_encode.add_route(
                    route.dst,
                    gateway=route.gw or gateways.get(":" in route.dst),
                    index=index,
                    table=route.table,
                    priority=route.priority or None,
                    mtu=route.mtu or None,
                    advmss=route.advmss or None,
                    scope=route.scope,
                )
            )
        cx.pod_netlink.batch(*messages)


@dataclass(frozen=True)
class Redirect(Step):
    """What arrives on one goes out of the other. `lasting`: the interface is not ours and
    stays, so the undo takes the redirect away from it."""

    ifname: str
    tap: str
    engine: str
    lasting: bool

    def do(self, cx: Context) -> None:
        engine = redirect.choose(self.engine)
        cx.facts["redirect"] = engine
        interface = need_index(cx.pod_netlink, self.ifname)
        tap = need_index(cx.pod_netlink, self.tap)
        with cx.in_pod():
            redirect.attach(engine, cx.pod_netlink, interface, tap)

    def undo(self, cx: Context) -> None:
        engine = cx.facts.get("redirect")
        if self.lasting:
            remove_redirect(cx, self.ifname, (engine,) if engine else redirect.ENGINES)

    def check(self, cx: Context) -> None:
        interface = expect_link(cx.pod_netlink, self.ifname, "in the pod's namespace").index
        tap = expect_link(cx.pod_netlink, self.tap, "in the pod's namespace").index
        with cx.in_pod():
            redirect.check(cx.facts["redirect"], cx.pod_netlink, interface, tap)


def remove_redirect(cx: Context, ifname: str, engines: tuple[str, ...]) -> None:
    """Take ours off an interface that stays."""
    if cx.pod_or_none is None:
        return
    if index := cx.pod_netlink.index(ifname):
        with cx.in_pod():
            for name in engines:
                if _is_ours(cx, redirect.target_of(name, cx.pod_netlink, index)):
                    redirect.detach(name, cx.pod_netlink, index)


def _is_ours(cx: Context, target: int | None) -> bool:
    """The path, even the inode, of a namespace may be another pod's when an old DEL comes."""
    if target is None:
        return False
    link = cx.pod_netlink.link(index=target) if target else None
    return link is None or link.group == cx.key.group or link.name == cx.key.tap_link


def _enable_ipv6(ifname: str, mtu: int) -> None:
    if mtu < MIN_MTU_V6:
        raise BadConfig(f"mtu: {mtu} is too small for IPv6, which needs {MIN_MTU_V6} (RFC 8200)")
    write_sysctl(f"ipv6/conf/{ifname}/disable_ipv6", "0")
