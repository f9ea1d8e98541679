"""A Linux bridge as the uplink: the bridge itself, and the gateway's address on it."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from cni.attach.context import Context, PromisedAddresses
from cni.attach.facts import Fact
from cni.attach.plan import Kinds, Step
from cni.errors import BadConfig, CheckFailed
from cni.kernel import bridge_vlans, rtnl_encode
from cni.kernel.bridge_vlans import VlanRange
from cni.kernel.netlink import Exists, Netlink
from cni.kernel.rtnl_decode import LinkInfo
from cni.modes.steps.links import PortMtu, need_link, write_sysctl


@dataclass(frozen=True)
class BridgeIndex(Fact):
    """The ifindex of the Linux bridge."""

    index: int


@dataclass(frozen=True)
class Bridge(Step):
    """The bridge: made when it is missing, and left, since other pods and people use it.

    With a `vlan` it filters VLANs.
    """

    provides: ClassVar[Kinds] = (BridgeIndex, PortMtu)
    bridge: str
    vlan: int

    def do(self, cx: Context) -> None:
        link = cx.host_netlink.link(self.bridge) or self._make(cx)
        self._make_ready(cx.host_netlink, link)
        cx.facts.put(BridgeIndex(link.index), PortMtu(link.mtu))

    def _make_ready(self, netlink: Netlink, link: LinkInfo) -> None:
        if link.kind != "bridge":
            raise BadConfig(
                f"linux.bridge: {self.bridge} is a {link.kind or 'device'}, not a bridge; name "
                "another"
            )
        if self.vlan and not link.vlan_filtering:
            netlink.batch(rtnl_encode.set_vlan_filtering(link.index))
        if not link.up:
            netlink.batch(rtnl_encode.set_link(link.index, up=True))

    def _make(self, cx: Context) -> LinkInfo:
        # A bridge without a MAC address of its own takes the lowest of its ports', and the
        # gateway's would change as pods come and go.
        mac = "02:" + secrets.token_bytes(5).hex(":")
        bridge = rtnl_encode.new_bridge(self.bridge, mac, vlan_filtering=bool(self.vlan), up=True)
        with suppress(Exists):  # another request was faster
            cx.host_netlink.batch(bridge)
        return need_link(cx.host_netlink, self.bridge)


@dataclass(frozen=True)
class Gateway(Step):
    """The gateway's address on the bridge, or on its VLAN interface, and forwarding."""

    needs: ClassVar[Kinds] = (BridgeIndex, PromisedAddresses)
    bridge: str
    vlan: int

    def do(self, cx: Context) -> None:
        index = cx.facts[BridgeIndex].index
        if self.vlan:
            index = self._vlan_interface(cx, index)
        ips = [ip for ip in cx.addresses().ips if ip.gateway]
        if not ips:
            raise BadConfig("linux.gateway: the IPAM plugin returned no gateway; add one to ipam")
        for ip in ips:
            prefix = ip.address.partition("/")[2]
            _add_address(cx.host_netlink, index, f"{ip.gateway}/{prefix}")
            _enable_forwarding(cx.node.host.identity, ":" in ip.gateway)

    def _vlan_interface(self, cx: Context, bridge: int) -> int:
        name = vlan_interface(self.bridge, self.vlan)
        if link := cx.host_netlink.link(name):
            return link.index
        cx.host_netlink.batch(
            rtnl_encode.bridge_vlan(bridge, self.vlan, untagged_pvid=False, on_bridge_itself=True)
        )
        with suppress(Exists):  # another request was faster
            cx.host_netlink.batch(rtnl_encode.new_vlan(name, bridge, self.vlan, True))
        return need_link(cx.host_netlink, name).index


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


@cache
def _enable_forwarding(_host: tuple[int, int], v6: bool) -> None:
    """Switch forwarding on once in the life of vmlinkd: a later change is the operator's will."""
    write_sysctl("ipv6/conf/all/forwarding" if v6 else "ipv4/ip_forward", "1")
