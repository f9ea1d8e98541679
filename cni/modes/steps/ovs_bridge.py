"""A bridge of Open vSwitch as the uplink, and what its userspace datapath asks of ports.

Sources: Open vSwitch manual, "Open vSwitch without Kernel Support"; ovs-vswitchd.conf.db(5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.facts import Fact
from cni.attach.plan import Kinds, Step
from cni.errors import BadConfig, CheckFailed, NotReady
from cni.kernel import ethtool, redirect
from cni.modes.steps.links import IN_HOST, IN_POD, Nic, PortMtu, expect_link, need_index
from cni.ovs import ovn, port_ops
from cni.ovs.operations import View
from cni.spec.types import AttachmentKey

_DEFAULT_MTU = 1500
_DPDK = "set other_config:dpdk-init=true in the table Open_vSwitch and datapath_type=netdev"


@dataclass(frozen=True)
class Datapath(Fact):
    """The bridge's datapath: whether it is the userspace one, and whether it finishes checksums.

    Without `offload` it passes on frames whose checksums the sender left to the hardware.
    """

    userspace: bool
    offload: bool


def no_dpdk(view: View, bridge: str) -> str:
    """Return why a bridge cannot have vhost-user ports, empty if it can."""
    if view.dpdk and (view.bridges or {})[bridge] == "netdev":
        return ""
    return f"mode vhostuser: bridge {bridge} of Open vSwitch has no DPDK; {_DPDK}"


@dataclass(frozen=True)
class OvsBridge(Step):
    """The bridge, which must be there. Without an `mtu` a port takes that of its local port."""

    provides: ClassVar[Kinds] = (PortMtu, Datapath)
    bridge: str
    mtu: int
    dpdk: bool
    ovn: bool = False

    def do(self, cx: Context) -> None:
        view = cx.node.ovs.look(cx.cancel.remaining())
        bridges = view.bridges or {}
        if self.bridge not in bridges:
            raise BadConfig(port_ops.missing_bridge(self.bridge, bridges))
        if self.dpdk and (reason := no_dpdk(view, self.bridge)):
            raise NotReady(reason)
        if self.ovn and (reason := ovn.wrong_bridge(view, self.bridge)):
            raise BadConfig(reason)
        userspace = bridges[self.bridge] == "netdev"
        cx.facts.put(
            Datapath(userspace, offload=not userspace or view.userspace_tso),
            PortMtu(self.mtu or _local_mtu(cx, self.bridge)),
        )

    def renew(self, cx: Context, former: AttachmentKey) -> None:
        self.check(cx)


def _local_mtu(cx: Context, bridge: str) -> int:
    link = cx.host_netlink.link(bridge)
    return link.mtu if link else _DEFAULT_MTU


@dataclass(frozen=True)
class IgnoreHostStack(Step):
    """The node's own stack takes nothing that the port `name` receives.

    The userspace datapath works on copies: the stack, which gets the frames as well, would answer
    for its addresses, whatever VLAN the port is in.
    """

    needs: ClassVar[Kinds] = (Datapath,)
    name: str

    def do(self, cx: Context) -> None:
        if cx.facts[Datapath].userspace:
            index = need_index(cx.host_netlink, self.name)
            cx.host_netlink.batch(*redirect.ignore(index))

    def renew(self, cx: Context, former: AttachmentKey) -> None:
        self.check(cx)

    def check(self, cx: Context) -> None:
        if not cx.facts[Datapath].userspace:
            return
        link = expect_link(cx.host_netlink, self.name, IN_HOST)
        if not redirect.ignores(cx.host_netlink, link.index):
            raise CheckFailed(
                f"{self.name}: expected a filter that keeps frames from the node's stack, found "
                "none"
            )


@dataclass(frozen=True)
class SoftwareChecksums(Step):
    """The interface finishes its checksums where the switch passes on unfinished ones."""

    needs: ClassVar[Kinds] = (Datapath, Nic)
    ifname: str

    def do(self, cx: Context) -> None:
        if not cx.facts[Datapath].offload:
            index = need_index(cx.pod_netlink, self.ifname)
            with cx.in_pod():
                ethtool.stop_tx_checksum(index)

    def check(self, cx: Context) -> None:
        if cx.facts[Datapath].offload:
            return
        index = expect_link(cx.pod_netlink, self.ifname, IN_POD).index
        with cx.in_pod():
            if ethtool.tx_checksum(index):
                raise CheckFailed(f"{self.ifname}: expected tx checksum offload off, found on")
