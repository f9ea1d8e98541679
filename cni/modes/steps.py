"""The steps that modes are made of: addresses, bridge, veth, tap, configuration, redirect."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from cni import ipam, redirect, rtmsg, tuntap
from cni.context import Context
from cni.errors import AttachmentExists, BadConfig, CheckFailed, DeadlineExceeded, VmlinkError
from cni.netlink import Exists, Netlink, NotFound
from cni.plan import Step
from cni.rtdecode import LinkInfo
from cni.types import AttachmentKey

_ready_bridges: set[tuple[tuple[int, int], int | None, int]] = set()
_GRACE = 5  # seconds for an IPAM plugin to end an ADD that is to be undone
_MIN_MTU_V6 = 1280  # below it a link has no IPv6 at all (RFC 8200, section 5)


@dataclass(frozen=True)
class Addresses(Step):
    """The IPAM plugin. Its ADD runs while the steps after this one make links."""

    background: ClassVar[bool] = True

    def do(self, cx: Context) -> None:
        try:
            cx.pending_ipam = ipam.begin_add(cx.ipam_call)
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
            ipam.delete(cx.ipam_call)
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
        ipam.check(cx.ipam_call)


@dataclass(frozen=True)
class Bridge(Step):
    """The bridge is made when it is missing, and stays: other pods and people use it."""

    bridge: str
    vlan: int

    def do(self, cx: Context) -> None:
        netlink = cx.host_netlink
        index = netlink.index(self.bridge)
        # An index never comes back as a link of another kind, so one good look is enough.
        known = (cx.host.identity, index, self.vlan)
        if known not in _ready_bridges:
            link = netlink.link(self.bridge) or self._make(cx)
            self._make_ready(netlink, link)
            index = link.index
            _ready_bridges.add((cx.host.identity, index, self.vlan))
        cx.facts["bridge_index"] = index
        cx.facts["mtu"] = netlink.mtu(self.bridge)

    def _make_ready(self, netlink: Netlink, link: LinkInfo) -> None:
        if link.kind != "bridge":
            raise BadConfig(
                f"linux.bridge: {self.bridge} is there, but it is a {link.kind or 'device'}, "
                "not a bridge; name another"
            )
        if self.vlan and not link.vlan_filtering:
            netlink.batch(rtmsg.set_vlan_filtering(link.index))
        if not link.up:
            netlink.batch(rtmsg.set_link(link.index, up=True))

    def _make(self, cx: Context) -> LinkInfo:
        # An address of its own: a bridge without one takes the lowest of its ports', and
        # the gateway's MAC would change as pods come and go.
        mac = "02:" + secrets.token_bytes(5).hex(":")
        try:
            cx.host_netlink.batch(rtmsg.new_bridge(self.bridge, mac, None, bool(self.vlan), True))
        except Exists:
            cx.log.debug("bridge %s was made by another request meanwhile", self.bridge)
        return need_link(cx.host_netlink, self.bridge)


@dataclass(frozen=True)
class Gateway(Step):
    """The gateway's address on the bridge, or on its VLAN interface, and forwarding."""

    bridge: str
    vlan: int

    def do(self, cx: Context) -> None:
        index = cx.facts["bridge_index"]
        if self.vlan:
            index = self._vlan_interface(cx, index)
        ips = [ip for ip in cx.ipam().ips if ip.gateway]
        if not ips:
            raise BadConfig("linux.gateway: the IPAM plugin returned no gateway")
        for ip in ips:
            prefix = ip.address.partition("/")[2]
            add_address(cx.host_netlink, index, f"{ip.gateway}/{prefix}")
            _enable_forwarding(cx.host.identity, ":" in ip.gateway)

    def _vlan_interface(self, cx: Context, bridge: int) -> int:
        name = f"{self.bridge}.{self.vlan}"
        if link := cx.host_netlink.link(name):
            return link.index
        cx.host_netlink.batch(
            rtmsg.bridge_vlan(bridge, self.vlan, untagged_pvid=False, on_bridge_itself=True)
        )
        try:
            cx.host_netlink.batch(rtmsg.new_vlan(name, bridge, self.vlan, True))
        except Exists:
            cx.log.debug("%s was made by another request meanwhile", name)
        return need_link(cx.host_netlink, name).index


@dataclass(frozen=True)
class Veth(Step):
    """A veth: one end is the bridge's port, the other the pod's interface.

    `mtu` 0 takes the bridge's. The pod's end carries the attachment's IFLA_GROUP from its first
    moment, which tells it from an interface of the same name that is not ours.
    """

    ifname: str
    mac: str
    mtu: int
    vlan: int

    def links(self) -> tuple[str, ...]:
        return (self.ifname,)

    def do(self, cx: Context) -> None:
        if self.mtu:
            cx.facts["mtu"] = self.mtu
        cx.facts["mac"] = self.mac
        veth = rtmsg.new_veth(
            cx.key.host_link,
            self.ifname,
            mac=host_mac(cx.key),
            peer_mac=self.mac,
            mtu=cx.facts["mtu"],
            peer_ns_fd=cx.pod.fd,
            master=cx.facts["bridge_index"],
            peer_group=cx.key.group,
            queues=1,  # a veth takes no lock to send; each further queue costs directories in sysfs
        )
        try:
            cx.host_netlink.batch(veth)
        except Exists as e:
            taken = cx.key.host_link if cx.host_netlink.index(cx.key.host_link) else self.ifname
            raise AttachmentExists(f"interface {taken} exists already; DEL comes first") from e
        index = need_index(cx.host_netlink, cx.key.host_link)
        messages = silent(index, cx.facts["mtu"])
        if self.vlan:
            _only_vlan(cx.host_netlink, index, self.vlan)
        cx.host_netlink.batch(*messages, rtmsg.set_link(index, up=True))

    def undo(self, cx: Context) -> None:
        remove_pod_link(cx, self.ifname)
        if index := cx.host_netlink.index(cx.key.host_link):
            cx.reaper.delete(cx.host, None, [index], cx.cancel.remaining())

    def check(self, cx: Context) -> None:
        host = expect_link(cx.host_netlink, cx.key.host_link, "in the host's namespace")
        if host.master != cx.facts["bridge_index"]:
            raise CheckFailed(f"{host.name}: is no longer a port of its bridge")
        if not host.up:
            raise CheckFailed(f"{host.name}: is down")
        expect_link(cx.pod_netlink, self.ifname, "in the pod's namespace")


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
        named = rtmsg.set_link(
            index,
            mtu=cx.facts["mtu"],
            mac=mac,
            group=cx.key.group,
            name=None if self.name == derived else self.name,
            addrgenmode_none=_can_silence(cx.facts["mtu"]),
        )
        try:
            cx.pod_netlink.batch(named, rtmsg.set_link(index, up=True))
        except Exists as e:
            raise BadConfig(f"tap.name: {self.name} exists in the pod's namespace") from e

    def undo(self, cx: Context) -> None:
        remove_pod_link(cx, self.name)
        remove_pod_link(cx, cx.key.tap_link)

    def check(self, cx: Context) -> None:
        link = expect_link(cx.pod_netlink, self.name, "in the pod's namespace")
        if link.mtu != cx.facts["mtu"] or not link.up:
            raise CheckFailed(
                f"{self.name}: expected up with MTU {cx.facts['mtu']}, found "
                f"{'up' if link.up else 'down'} with {link.mtu}"
            )


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
        messages.append(rtmsg.set_link(index, up=True))
        messages += [rtmsg.add_address(index, ip.address) for ip in addresses.ips]
        for route in addresses.routes:
            messages.append(
                rtmsg.add_route(
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
        if not self.lasting or cx.pod_or_none is None:
            return
        if index := cx.pod_netlink.index(self.ifname):
            with cx.in_pod():
                for name in [engine] if engine else redirect.ENGINES:
                    if self._is_ours(cx, redirect.target_of(name, cx.pod_netlink, index)):
                        redirect.detach(name, cx.pod_netlink, index)

    def _is_ours(self, cx: Context, target: int | None) -> bool:
        """The path, even the inode, of a namespace may be another pod's when an old DEL comes."""
        if target is None:
            return False
        link = cx.pod_netlink.link(index=target) if target else None
        return link is None or link.group == cx.key.group or link.name == cx.key.tap_link

    def check(self, cx: Context) -> None:
        interface = expect_link(cx.pod_netlink, self.ifname, "in the pod's namespace").index
        tap = expect_link(cx.pod_netlink, self.tap, "in the pod's namespace").index
        with cx.in_pod():
            redirect.check(cx.facts["redirect"], cx.pod_netlink, interface, tap)


def host_mac(key: AttachmentKey) -> str:
    """fe: is above every assigned address, so a bridge never takes it for its own."""
    return "fe" + key.mac("host")[2:]


def need_link(netlink: Netlink, name: str) -> LinkInfo:
    """The link, which was there a moment ago."""
    link = netlink.link(index=need_index(netlink, name))
    if link is None:
        raise VmlinkError(f"interface {name} went away while it was being configured")
    return link


def need_index(netlink: Netlink, name: str) -> int:
    index = netlink.index(name)
    if index is None:
        raise VmlinkError(f"interface {name} went away while it was being configured")
    return index


def expect_link(netlink: Netlink, name: str, where: str) -> LinkInfo:
    link = netlink.link(name)
    if link is None:
        raise CheckFailed(f"{name}: expected {where}, found nothing")
    return link


def silent(index: int, mtu: int) -> list[rtmsg.Message]:
    """No link-local address: runtimes take every addressed link for the guest's (Kata's scan)."""
    return [rtmsg.set_link(index, addrgenmode_none=True)] if _can_silence(mtu) else []


def _can_silence(mtu: int) -> bool:
    return mtu >= _MIN_MTU_V6 and _has_ipv6()


@cache
def _has_ipv6() -> bool:
    return os.path.exists("/proc/sys/net/ipv6")


def add_address(netlink: Netlink, index: int, cidr: str) -> None:
    (error,) = netlink.attempt(rtmsg.add_address(index, cidr))
    if error and not isinstance(error, Exists):
        raise error


def remove_pod_link(cx: Context, name: str) -> None:
    """Delete a link of ours, and with it, in one request, all that carry its group."""
    if cx.pod_or_none is None:
        return
    link = cx.pod_netlink.link(name)
    if link is None:
        return
    if link.group == cx.key.group:
        ours = [cx.pod_netlink.link(other) for other in cx.pod_links]
        indexes = [x.index for x in ours if x and x.group == cx.key.group]
        cx.reaper.delete(cx.pod, cx.key.group, indexes, cx.cancel.remaining())
    elif name == cx.key.tap_link:
        cx.reaper.delete(cx.pod, None, [link.index], cx.cancel.remaining())


def _only_vlan(netlink: Netlink, index: int, vlan: int) -> None:
    with suppress(NotFound):  # the bridge may have no default VLAN
        netlink.batch(
            rtmsg.bridge_vlan(index, 1, untagged_pvid=True, on_bridge_itself=False, delete=True)
        )
    netlink.batch(rtmsg.bridge_vlan(index, vlan, untagged_pvid=True, on_bridge_itself=False))


def _enable_ipv6(ifname: str, mtu: int) -> None:
    if mtu < _MIN_MTU_V6:
        raise BadConfig(f"mtu: {mtu} is too small for IPv6, which needs {_MIN_MTU_V6} (RFC 8200)")
    _write_sysctl(f"ipv6/conf/{ifname}/disable_ipv6", "0")


@cache
def _enable_forwarding(_host: tuple[int, int], v6: bool) -> None:
    """Once in the life of the daemon: who switches it off later means it."""
    _write_sysctl("ipv6/conf/all/forwarding" if v6 else "ipv4/ip_forward", "1")


def _write_sysctl(name: str, value: str) -> None:
    path = "/proc/sys/net/" + name
    try:
        with open(path, "r+") as f:
            if f.read().strip() != value:
                f.seek(0)
                f.write(value)
    except OSError as e:
        raise VmlinkError(f"cannot set {path} to {value}: {e.strerror}") from e
