"""A veth pair: one end is the switch's port, the other the pod's interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.plan import Kinds
from cni.errors import AttachmentExists, CheckFailed
from cni.kernel import rtnl_encode
from cni.kernel.netlink import Exists
from cni.modes.steps.bridge import BridgeIndex, expect_vlan, restrict_to_vlan
from cni.modes.steps.links import (
    IN_HOST,
    Nic,
    PodLink,
    PortMtu,
    expect_link,
    need_index,
    no_link_local,
    refuse_advertisements,
    remove_host_link,
)


@dataclass(frozen=True)
class Veth(PodLink):
    """The pair. `mtu` 0 takes the bridge's; `vlan` is a Linux bridge's.

    A port of Open vSwitch has no master from here. The pod's end is made in the pod's namespace: to
    move a link there holds the RTNL lock through an RCU barrier, 18 to 42 ms.
    """

    needs: ClassVar[Kinds] = (PortMtu,)
    provides: ClassVar[Kinds] = (Nic,)
    ifname: str
    mac: str
    mtu: int
    vlan: int

    def link(self) -> str:
        return self.ifname

    def do(self, cx: Context) -> None:
        mtu = self.mtu or cx.facts[PortMtu].mtu
        cx.facts.put(Nic(self.mac, mtu))
        bridge = cx.facts.get(BridgeIndex)
        veth = rtnl_encode.new_veth(
            cx.key.host_link,
            self.ifname,
            mac=cx.key.port_mac,
            peer_mac=self.mac,
            mtu=mtu,
            peer_ns_fd=cx.pod.fd,
            master=bridge.index if bridge else None,
            peer_group=cx.key.group,
            queues=1,  # a veth takes no lock to send; each further queue costs directories in sysfs
        )
        try:
            cx.host_netlink.batch(veth)
        except Exists as e:
            taken = cx.key.host_link if cx.host_netlink.index(cx.key.host_link) else self.ifname
            raise AttachmentExists(f"interface {taken} exists already; DEL comes first") from e
        index = need_index(cx.host_netlink, cx.key.host_link)
        if self.vlan:
            restrict_to_vlan(cx.host_netlink, index, self.vlan)
        refuse_advertisements(cx.key.host_link)
        up = rtnl_encode.set_link(index, up=True)
        cx.host_netlink.batch(*no_link_local(index, mtu), up)

    def undo(self, cx: Context) -> None:
        super().undo(cx)
        if cx.pod_or_none is None:
            self._reach_through(cx)
        remove_host_link(cx, cx.key.host_link)

    def _reach_through(self, cx: Context) -> None:
        """Delete the pod's links by way of the veth, when nobody says where the namespace is."""
        host = cx.host_netlink.link(cx.key.host_link)
        if host and host.link_netnsid is not None:
            there = rtnl_encode.del_link(group=cx.key.group, netnsid=host.link_netnsid)
            (error,) = cx.host_netlink.attempt(there)
            if error:  # EINVAL: the namespace is about to go, and its links with it
                cx.log.info("%s: %s", cx.key, error)

    def check(self, cx: Context) -> None:
        host = expect_link(cx.host_netlink, cx.key.host_link, IN_HOST)
        bridge = cx.facts.get(BridgeIndex)
        if bridge and host.master != bridge.index:
            raise CheckFailed(f"{host.name}: expected a port of its bridge, found it is none")
        expect_vlan(cx.host_netlink, host, self.vlan)
        if not host.up:
            raise CheckFailed(f"{host.name}: expected up, found down")
        super().check(cx)
