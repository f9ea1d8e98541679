"""A Linux bridge as the uplink: the bridge itself, and the gateway's address on it."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_interface
from typing import ClassVar

from cni.attach.context import Context, PromisedAddresses
from cni.attach.facts import Fact
from cni.attach.plan import Kinds, Step
from cni.config.uplinks import LinuxUplink
from cni.errors import BadConfig, CheckFailed, CutOff, NotReady
from cni.kernel import bridge_vlans, rtnl_encode
from cni.kernel.bridge_vlans import VlanRange
from cni.kernel.netlink import Exists, Netlink, NotFound
from cni.kernel.rtnl_decode import LinkInfo
from cni.kernel.scratch import in_scratch_namespace
from cni.modes.steps import forwarding
from cni.modes.steps.links import (
    IN_HOST,
    Nic,
    PortMtu,
    expect_link,
    need_index,
    need_link,
    refuse_advertisements,
)

_MTU = 1500  # of a bridge in a network that has none


@dataclass(frozen=True)
class BridgeIndex(Fact):
    """The ifindex of the Linux bridge."""

    index: int


@dataclass(frozen=True)
class GatewayAddresses(Fact):
    """The addresses, as CIDRs, that make the bridge the pod's gateway."""

    cidrs: tuple[str, ...]


@dataclass(frozen=True)
class Bridge(Step):
    """The bridge: made when it is missing, and left, since other pods and people use it.

    With a `vlan` it filters VLANs. One that is made keeps the MTU `mtu` (0: 1500), where the kernel
    would give it the smallest of its ports'.
    """

    provides: ClassVar[Kinds] = (BridgeIndex, PortMtu)
    bridge: str
    vlan: int
    mtu: int = field(default=0, compare=False)

    def do(self, cx: Context) -> None:
        link = cx.host_netlink.link(self.bridge) or self._make(cx.host_netlink)
        self._make_ready(cx.host_netlink, link)
        cx.facts.put(BridgeIndex(link.index), PortMtu(link.mtu))

    def _make_ready(self, netlink: Netlink, link: LinkInfo) -> None:
        if reason := _no_bridge(link):
            raise BadConfig(reason)
        if self.vlan and not link.vlan_filtering:
            netlink.batch(rtnl_encode.set_vlan_filtering(link.index))
        if not link.up:
            netlink.batch(rtnl_encode.set_link(link.index, up=True))

    def _make(self, netlink: Netlink) -> LinkInfo:
        # A bridge without a MAC address of its own takes the lowest of its ports', and the
        # gateway's would change as pods come and go. An MTU lasts that is changed after the making.
        mac, mtu = "02:" + secrets.token_bytes(5).hex(":"), self.mtu or _MTU
        bridge = rtnl_encode.new_bridge(self.bridge, mac, mtu + 1, bool(self.vlan))
        with suppress(Exists):  # another request was faster
            netlink.batch(bridge)
        refuse_advertisements(self.bridge)
        netlink.batch(rtnl_encode.set_link(need_index(netlink, self.bridge), mtu=mtu))
        return need_link(netlink, self.bridge)

    def check(self, cx: Context) -> None:
        link = expect_link(cx.host_netlink, self.bridge, IN_HOST)
        if link.index != cx.facts[BridgeIndex].index:
            raise CheckFailed(
                f"{self.bridge}: expected the bridge of the pod's port, found one that was made "
                "since; restart the pod"
            )
        if not link.up:
            raise CheckFailed(f"{self.bridge}: expected up, found down; set it up")
        if self.vlan and not link.vlan_filtering:
            raise CheckFailed(f"{self.bridge}: expected VLAN filtering, found none; turn it on")


@dataclass(frozen=True)
class Gateway(Step):
    """The gateway's address on the bridge, or on its VLAN interface, and forwarding."""

    needs: ClassVar[Kinds] = (BridgeIndex, Nic, PromisedAddresses)
    provides: ClassVar[Kinds] = (GatewayAddresses,)
    bridge: str
    vlan: int

    def do(self, cx: Context) -> None:
        index = cx.facts[BridgeIndex].index
        if self.vlan:
            index = self._vlan_interface(cx.host_netlink, index)
        ips = [ip for ip in cx.addresses().ips if ip.gateway]
        if not ips:
            raise BadConfig("linux.gateway: the IPAM plugin returned no gateway; add one to ipam")
        cidrs = tuple(f"{ip.gateway}/{ip.address.partition('/')[2]}" for ip in ips)
        cx.facts.put(GatewayAddresses(cidrs))
        for cidr in cidrs:
            _add_address(cx.host_netlink, index, cidr)
            forwarding.enable(cx.host_netlink, v6=":" in cidr)
        self._correct_neighbours(cx, index)

    def _correct_neighbours(self, cx: Context, index: int) -> None:
        """Let the node reach an address at once that another MAC had before."""
        mac, ips = cx.facts[Nic].mac, cx.addresses().ips
        updates = [rtnl_encode.update_neighbour(index, ip.bare, mac) for ip in ips]
        for error in cx.host_netlink.attempt(*updates):
            if error and not isinstance(error, NotFound):
                raise error

    def _vlan_interface(self, netlink: Netlink, bridge: int) -> int:
        name = vlan_interface(self.bridge, self.vlan)
        if not (link := netlink.link(name)):
            netlink.batch(
                rtnl_encode.bridge_vlan(
                    bridge, self.vlan, untagged_pvid=False, on_bridge_itself=True
                )
            )
            with suppress(Exists):  # another request was faster
                netlink.batch(rtnl_encode.new_vlan(name, bridge, self.vlan))
            refuse_advertisements(name)
            link = need_link(netlink, name)
        if not link.up:
            netlink.batch(rtnl_encode.set_link(link.index, up=True))
        return link.index

    def check(self, cx: Context) -> None:
        name = vlan_interface(self.bridge, self.vlan)
        link = expect_link(cx.host_netlink, name, IN_HOST)
        if not link.up:
            raise CheckFailed(f"{name}: expected up, found down; set it up")
        present = {ip_interface(cidr) for cidr in cx.host_netlink.addresses(link.index)}
        known = cx.facts.get(GatewayAddresses)
        for cidr in known.cidrs if known else ():
            if ip_interface(cidr) not in present:
                raise CheckFailed(f"{name}: expected the gateway's address {cidr}; add it")
            forwarding.check(v6=":" in cidr)


def require(uplink: LinuxUplink) -> None:
    """Raise NotReady for a bridge that an ADD cannot use, CutOff where pods on it suffer."""
    if uplink.vlan:
        _require_vlans(uplink.gateway)
    with Netlink() as netlink:
        link = netlink.link(uplink.bridge)
        if link is None:  # an ADD makes it
            return
        if reason := _no_bridge(link):
            raise NotReady(reason)
        # One without ports may have been there before its first pod, whose ADD completes it.
        if any(each.master == link.index for each in netlink.links()):
            _require_connected(netlink, link, uplink)


def _require_connected(netlink: Netlink, bridge: LinkInfo, uplink: LinuxUplink) -> None:
    if not bridge.up:
        raise CutOff(f"linux.bridge: {bridge.name} is down; ip link set {bridge.name} up")
    if not uplink.gateway:
        return
    name = vlan_interface(bridge.name, uplink.vlan)
    gateway = netlink.link(name)
    if gateway and not (gateway.up and _has_global_address(netlink, gateway)):
        raise CutOff(
            f"linux.gateway: {name} is down or has lost the gateway's address; set it up and give "
            "it back, or delete the pods on it"
        )


def _has_global_address(netlink: Netlink, link: LinkInfo) -> bool:
    return any(not ip_interface(cidr).is_link_local for cidr in netlink.addresses(link.index))


def _no_bridge(link: LinkInfo) -> str:
    """Return why the link cannot be a network's bridge, empty if it can."""
    if link.kind == "bridge":
        return ""
    return f"linux.bridge: {link.name} is a {link.kind or 'device'}, not a bridge; name another"


@cache  # but not the exception: the kernel's module may be loaded later
def _require_vlans(gateway: bool) -> None:
    if reason := in_scratch_namespace(lambda netlink: _try_vlans(netlink, gateway)):
        modules = "CONFIG_BRIDGE_VLAN_FILTERING" + (" and the module 8021q" if gateway else "")
        raise NotReady(f"linux.vlan: {reason}; it needs a kernel with {modules}")


def _try_vlans(netlink: Netlink, gateway: bool) -> str:
    (error,) = netlink.attempt(rtnl_encode.new_bridge("tried", vlan_filtering=True))
    if not error and gateway:
        index = need_index(netlink, "tried")
        (error,) = netlink.attempt(rtnl_encode.new_vlan("tried.2", index, 2))
    return error.msg if error else ""


def vlan_interface(bridge: str, vlan: int) -> str:
    """Return the name of the link that has the gateway's address; `vlan` 0 is the bridge itself."""
    return f"{bridge}.{vlan}" if vlan else bridge


def restrict_to_vlan(netlink: Netlink, index: int, vlan: int) -> None:
    """Make a bridge port an untagged member of this VLAN and of no other.

    The bridge has put it into its default VLAN, vlan_default_pvid in ip-link(8).
    """
    ours = rtnl_encode.bridge_vlan(index, vlan, untagged_pvid=True)
    netlink.batch(bridge_vlans.delete_vlans(index), ours)


def expect_vlan(netlink: Netlink, port: LinkInfo, vlan: int) -> None:
    """Raise CheckFailed unless a port is as `restrict_to_vlan` made it; `vlan` 0 is any."""
    if not vlan:
        return
    found = netlink.vlans(port.index)
    if found != [VlanRange(vlan, vlan, pvid=True, untagged=True)]:
        listed = ", ".join(map(str, found)) or "none"
        raise CheckFailed(f"{port.name}: expected VLAN {vlan} alone, untagged; found {listed}")


def _add_address(netlink: Netlink, index: int, cidr: str) -> None:
    (error,) = netlink.attempt(rtnl_encode.add_address(index, cidr))
    if error and not isinstance(error, Exists):
        raise error
