"""What a mode is: a description of the steps, and of the device that they leave."""

from __future__ import annotations

from typing import Any, Protocol

from cni.config import LinuxUplink, NetConf
from cni.device import Device
from cni.modes import bridge, steps
from cni.plan import Plan, Step
from cni.types import AttachmentKey, Interface


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

    def ready(self, conf: NetConf) -> None:
        """STATUS: raises NotReady when an ADD cannot succeed on this node."""
        ...


def port_steps(
    key: AttachmentKey, conf: NetConf, uplink: LinuxUplink, silenced: bool
) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """The pod's veth as a port of the bridge: (prepare, bind)."""
    mac = conf.mac or key.mac()
    prepare = (
        bridge.Bridge(uplink.bridge, uplink.vlan),
        bridge.Veth(key.ifname, mac, conf.mtu, uplink.vlan),
    )
    bind: list[Step] = [steps.Addresses()] if conf.ipam else []
    if uplink.gateway:
        bind.append(bridge.Gateway(uplink.bridge, uplink.vlan))
    bind.append(steps.Configure(key.ifname, silenced))
    return prepare, tuple(bind)


def pod_interface(key: AttachmentKey, facts: dict[str, Any], netns: str) -> Interface:
    return Interface(key.ifname, facts["mac"], facts["mtu"], netns)


def host_interface(key: AttachmentKey, facts: dict[str, Any]) -> Interface:
    return Interface(key.host_link, bridge.host_mac(key), facts["mtu"])
