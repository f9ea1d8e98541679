"""The steps of the Linux bridge as an uplink: the bridge, its gateway, the pod's veth."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from cni.attach.context import Context
from cni.attach.plan import Step
from cni.errors import AttachmentExists, BadConfig, CheckFailed
from cni.kernel import rtnl_encode
from cni.kernel.netlink import Exists, Netlink, NotFound
from cni.kernel.rtnl_decode import LinkInfo
from cni.modes.steps.links import (
    expect_link,
    need_index,
    need_link,
    remove_host_links,
    remove_pod_link,
    silent,
    write_sysctl,
)
from cni.spec.types import AttachmentKey

_ready_bridges: set[tuple[tuple[int, int], int | None, int]] = set()


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
            netlink.batch(rtnl_encode.set_vlan_filtering(link.index))
        if not link.up:
            netlink.batch(rtnl_encode.set_link(link.index, up=True))

    def _make(self, cx: Context) -> LinkInfo:
        # An address of its own: a bridge without one takes the lowest of its ports', and
        # the gateway's MAC would change as pods come and go.
        mac = "02:" + secrets.token_bytes(5).hex(":")
        try:
            cx.host_netlink.batch(
                rtnl_encode.new_bridge(self.bridge, mac, None, bool(self.vlan), True)
            )
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
            _add_address(cx.host_netlink, index, f"{ip.gateway}/{prefix}")
            _enable_forwarding(cx.host.identity, ":" in ip.gateway)

    def _vlan_interface(self, cx: Context, bridge: int) -> int:
        name = f"{self.bridge}.{self.vlan}"
        if link := cx.host_netlink.link(name):
            return link.index
        cx.host_netlink.batch(
            rtnl_encode.bridge_vlan(bridge, self.vlan, untagged_pvid=False, on_bridge_itself=True)
        )
        try:
            cx.host_netlink.batch(rtnl_encode.new_vlan(name, bridge, self.vlan, True))
        except Exists:
            cx.log.debug("%s was made by another request meanwhile", name)
        return need_link(cx.host_netlink, name).index


@dataclass(frozen=True)
class Veth(Step):
    """A veth: one end is the bridge's port, the other the pod's interface.

    `mtu` 0 takes the bridge's. A port of Open vSwitch has no master from here. The pod's end
    carries the attachment's IFLA_GROUP from its first moment, which tells it from an interface of
    the same name that is not ours.
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
        veth = rtnl_encode.new_veth(
            cx.key.host_link,
            self.ifname,
            mac=host_mac(cx.key),
            peer_mac=self.mac,
            mtu=cx.facts["mtu"],
            peer_ns_fd=cx.pod.fd,
            master=cx.facts.get("bridge_index"),
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
            only_vlan(cx.host_netlink, index, self.vlan)
        cx.host_netlink.batch(*messages, rtnl_encode.set_link(index, up=True))

    def undo(self, cx: Context) -> None:
        remove_pod_link(cx, self.ifname)
        if cx.pod_or_none is None:
            self._reach_through(cx)
        remove_host_links(cx, cx.key.host_link, cx.key.ifb_link)

    def _reach_through(self, cx: Context) -> None:
        """Nobody tells where the pod's namespace is, but a veth that is there leads to it."""
        host = cx.host_netlink.link(cx.key.host_link)
        if host and host.link_netnsid is not None:
            there = rtnl_encode.del_link(group=cx.key.group, netnsid=host.link_netnsid)
            (error,) = cx.host_netlink.attempt(there)
            if error:  # EINVAL: the namespace is about to go, and its links with it
                cx.log.info("%s: %s", cx.key, error)

    def check(self, cx: Context) -> None:
        host = expect_link(cx.host_netlink, cx.key.host_link, "in the host's namespace")
        if host.master != cx.facts.get("bridge_index", host.master):
            raise CheckFailed(f"{host.name}: is no longer a port of its bridge")
        if not host.up:
            raise CheckFailed(f"{host.name}: is down")
        expect_link(cx.pod_netlink, self.ifname, "in the pod's namespace")


def host_mac(key: AttachmentKey) -> str:
    """fe: is above every assigned address, so a bridge never takes it for its own."""
    return "fe:" + bytes.fromhex(key.wire)[:5].hex(":")


def only_vlan(netlink: Netlink, index: int, vlan: int) -> None:
    """The port is an untagged member of this VLAN and of no other."""
    with suppress(NotFound):  # the bridge may have no default VLAN
        netlink.batch(
            rtnl_encode.bridge_vlan(
                index, 1, untagged_pvid=True, on_bridge_itself=False, delete=True
            )
        )
    netlink.batch(rtnl_encode.bridge_vlan(index, vlan, untagged_pvid=True, on_bridge_itself=False))


def _add_address(netlink: Netlink, index: int, cidr: str) -> None:
    (error,) = netlink.attempt(rtnl_encode.add_address(index, cidr))
    if error and not isinstance(error, Exists):
        raise error


@cache
def _enable_forwarding(_host: tuple[int, int], v6: bool) -> None:
    """Once in the life of the daemon: who switches it off later means it."""
    write_sysctl("ipv6/conf/all/forwarding" if v6 else "ipv4/ip_forward", "1")
