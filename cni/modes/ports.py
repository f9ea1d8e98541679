"""A link as a port of the network's uplink: the steps around it, STATUS, and the pool's part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace

from cni.attach.context import Node
from cni.attach.plan import Step
from cni.cancel import Cancel
from cni.config.mode_rules import ANY_RUNTIME
from cni.config.network import NetConf
from cni.config.uplinks import LinuxUplink, OvsUplink
from cni.errors import BadConfig, NotReady, TryAgain
from cni.kernel import redirect
from cni.modes.base import Mode
from cni.modes.steps import bridge, token_bucket
from cni.modes.steps.bridge import Bridge, Gateway, vlan_interface
from cni.modes.steps.kata import GatewayNeighbour, OneWayIntoKata
from cni.modes.steps.limits import LinkLimits, rates_of
from cni.modes.steps.ovs_bridge import IgnoreHostStack, OvsBridge, no_dpdk
from cni.modes.steps.ovs_port import OvsPort, OvsReady
from cni.ovs import ovn, port_ops
from cni.spec.types import AttachmentKey, Bandwidth

_OVN_MTU = 1400  # br-int's own is no measure: it follows its ports'
_STATUS_SECONDS = 2


@dataclass(frozen=True)
class PortSteps:
    """The steps that make a link a port of the uplink.

    They come `before` the link is made, right `after`, once the pod's `addresses` are known, and at
    the `end` of the plan.
    """

    before: tuple[Step, ...]
    after: tuple[Step, ...] = ()
    addresses: tuple[Step, ...] = ()
    end: tuple[Step, ...] = ()


def port_steps(
    conf: NetConf, name: str, kind: str = "", limits: Bandwidth | None = None
) -> PortSteps:
    """Return the steps for the link `name` on a Linux bridge or Open vSwitch.

    `kind` is the type of Open vSwitch's Interface, "" for a link of the kernel; `limits` are those
    that the switch is to keep.
    """
    uplink = conf.uplink
    if isinstance(uplink, OvsUplink):
        return _ovs_steps(uplink, conf, name, kind, limits or Bandwidth())
    assert isinstance(uplink, LinuxUplink), "the mode's rules name its uplinks"
    gateway = (Gateway(uplink.bridge, uplink.vlan),) if uplink.gateway else ()
    return PortSteps((Bridge(uplink.bridge, uplink.vlan, conf.mtu),), addresses=gateway)


def _ovs_steps(
    uplink: OvsUplink, conf: NetConf, name: str, kind: str, limits: Bandwidth
) -> PortSteps:
    dpdk, policed = bool(kind), bool(limits.egress_rate) and not kind
    mtu = conf.mtu or (_OVN_MTU if uplink.ovn else 0)
    ids = tuple(uplink.external_ids.items())
    logical = uplink.external_ids.get(ovn.IFACE_ID, "") if uplink.ovn else ""
    where = (uplink.bridge, name, kind, uplink.vlan, uplink.trunk)
    port = OvsPort(*where, ids, astuple(limits), policed, uplink.ovn)
    return PortSteps(
        before=(OvsBridge(uplink.bridge, mtu, dpdk, uplink.ovn),),
        after=(port,) if dpdk else (IgnoreHostStack(name), port),
        end=(OvsReady(name, policed, logical),),
    )


def vlan_of(conf: NetConf) -> int:
    """Return the VLAN of a Linux bridge's port, 0 for none and for any other uplink."""
    return conf.uplink.vlan if isinstance(conf.uplink, LinuxUplink) else 0


def on_switch(conf: NetConf) -> bool:
    """Return whether the port is Open vSwitch's, which can limit it by itself."""
    return isinstance(conf.uplink, OvsUplink)


def link_limits(conf: NetConf, link: str) -> tuple[Step, ...]:
    """Return the kernel's limits on a port, which a switch keeps itself."""
    return () if on_switch(conf) else (LinkLimits(link, False, rates_of(conf.bandwidth)),)


def gateway_neighbours(conf: NetConf, ifname: str) -> tuple[Step, ...]:
    """Return the step for a runtime that copies neighbour entries, where the gateway is a bridge.

    `ifname` is the pod's interface, "" where its namespace has none.
    """
    uplink = conf.uplink
    if conf.runtime == "any" or not isinstance(uplink, LinuxUplink) or not uplink.gateway:
        return ()
    return (GatewayNeighbour(vlan_interface(uplink.bridge, uplink.vlan), ifname),)


def scanned_by_kata(conf: NetConf) -> tuple[Step, ...]:
    """Return the step for an interface that Kata is to find in the pod's namespace."""
    return () if conf.runtime == ANY_RUNTIME else (OneWayIntoKata(False),)


def require_limits(conf: NetConf, by_kernel: bool) -> None:
    """Raise NotReady when the kernel is to keep limits and cannot."""
    if conf.bandwidth and by_kernel:
        token_bucket.require()


def require_switch(conf: NetConf, node: Node, *, dpdk: bool = False) -> None:
    """Raise NotReady when the uplink is a bridge or switch that cannot take a port now."""
    uplink = conf.uplink
    if isinstance(uplink, LinuxUplink):
        bridge.require(uplink)
    if not isinstance(uplink, OvsUplink):
        return
    try:
        view = node.ovs.look(_STATUS_SECONDS)
    except TryAgain as e:
        raise NotReady(e.msg) from e
    if not view.connected:
        raise NotReady(node.ovs.no_answer())
    bridges, name = view.bridges or {}, uplink.bridge
    if name not in bridges:
        raise NotReady(port_ops.missing_bridge(name, bridges))
    if dpdk:
        if reason := no_dpdk(view, name):
            raise NotReady(reason)
    elif bridges[name] == "netdev" and (reason := redirect.supported()["cls_bpf"]):
        raise NotReady(f"frames cannot be kept from the node's stack by cls_bpf: {reason}")
    if uplink.ovn and (reason := ovn.refusal(view, name)):
        raise NotReady(reason)


class PoolableMode(Mode):
    """A mode whose ports on Open vSwitch can be prepared before a pod is there."""

    def locate(
        self, key: AttachmentKey, conf: NetConf, node: Node, cancel: Cancel
    ) -> AttachmentKey:
        """Return the key with the prepared port that the switch's rows name. Raises TryAgain."""
        if not on_switch(conf):
            return key
        found = port_ops.Find(key)
        node.ovs.submit(found).wait(cancel.remaining(), node.ovs.no_answer())
        return found.key

    def preparable(self, conf: NetConf, node: Node, where: str) -> NetConf:
        """Return the configuration without a pod's part. Raises BadConfig, TryAgain."""
        uplink = conf.uplink
        if not isinstance(uplink, OvsUplink):
            raise BadConfig(
                f"{where}: only a port of Open vSwitch takes longer to make than to take; drop "
                "the pool"
            )
        if conf.tap.name:
            raise BadConfig(f"{where}: tap.name is one name, and a pool has many taps; drop one")
        view = node.ovs.look(0)
        if not view.connected:
            raise TryAgain(node.ovs.no_answer())
        if uplink.bridge not in (bridges := view.bridges or {}):
            raise BadConfig(port_ops.missing_bridge(uplink.bridge, bridges))
        return replace(conf, uplink=replace(uplink, external_ids={}), mac="", bandwidth=None)


def steps(*groups: Iterable[Step]) -> tuple[Step, ...]:
    """Return the groups of steps one after the other."""
    return tuple(step for group in groups for step in group)
