"""What a mode is: a description of the steps, and of the device that they leave."""

from __future__ import annotations

from typing import Any, Protocol

from cni.attach.context import Node
from cni.attach.plan import Plan, Step
from cni.config.network import NetConf
from cni.config.uplinks import LinuxUplink, OvsUplink
from cni.modes.steps import bridge, common, leased_addresses, switch
from cni.spec.types import AttachmentKey, Interface
from cni.vmm.device import Device


class Mode(Protocol):
    """One way to connect a pod. It never touches the kernel itself."""

    name: str

    def plan(self, key: AttachmentKey, conf: NetConf) -> Plan: ...

    def interfaces(
        self, key: AttachmentKey, conf: NetConf, facts: dict[str, Any], netns: str
    ) -> tuple[Interface, ...]:
        """The links that were made, for the CNI result; the pod's own comes first."""
        ...

    def device(
        self, key: AttachmentKey, conf: NetConf, facts: dict[str, Any], netns: str
    ) -> Device | None:
        """What a VMM opens; None where there is nothing for one."""
        ...

    def in_pod(self, conf: NetConf) -> bool:
        """Whether the pod's namespace has the interface that CNI promises."""
        ...

    def ready(self, conf: NetConf, node: Node) -> None:
        """STATUS: raises NotReady when an ADD cannot succeed on this node."""
        ...


def port_steps(
    key: AttachmentKey, conf: NetConf, silenced: bool
) -> tuple[tuple[Step, ...], tuple[Step, ...], tuple[Step, ...]]:
    """The pod's veth as a port of the bridge or switch: (prepare, the veth, what follows). It is
    made in the pod's namespace: to move a link there keeps everybody waiting (RTNL) in an RCU
    barrier, 18 to 42 ms."""
    mac, uplink = conf.mac or key.mac(), conf.uplink
    addresses = leased_addresses.addresses(conf)
    configure = common.Configure(key.ifname, silenced)
    if isinstance(uplink, OvsUplink):
        before, port, ready = switch.port_steps(uplink, key.host_link, conf)
        veth = bridge.Veth(key.ifname, mac, conf.mtu, 0)
        checksums = switch.FinishedChecksums(key.ifname)
        return (before,), (veth, *port), (*addresses, configure, checksums, ready)
    assert isinstance(uplink, LinuxUplink)
    gateway = (bridge.Gateway(uplink.bridge, uplink.vlan),) if uplink.gateway else ()
    made = bridge.Bridge(uplink.bridge, uplink.vlan)
    veth = bridge.Veth(key.ifname, mac, conf.mtu, uplink.vlan)
    return (made,), (veth,), (*addresses, *gateway, configure)


def pod_interface(key: AttachmentKey, facts: dict[str, Any], netns: str) -> Interface:
    return Interface(key.ifname, facts["mac"], facts["mtu"], netns)


def host_interface(key: AttachmentKey, facts: dict[str, Any]) -> Interface:
    return Interface(key.host_link, bridge.host_mac(key), facts["mtu"])
