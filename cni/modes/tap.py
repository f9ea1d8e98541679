"""Mode tap: the guest's tap is itself the port of the switch; the pod's namespace stays empty."""

from __future__ import annotations

import os
from typing import Any

from cni.attach.context import Node
from cni.attach.plan import Plan, Step
from cni.config.network import NetConf
from cni.config.uplinks import LinuxUplink, OvsUplink
from cni.errors import NotReady
from cni.modes.steps import bridge, common, kata, leased_addresses, switch
from cni.modes.steps import limits as shape
from cni.modes.steps.host_tap import HostTap, Placeholder
from cni.spec.types import AttachmentKey, Interface
from cni.vmm.device import Device


class Tap:
    name = "tap"

    def plan(self, key: AttachmentKey, conf: NetConf) -> Plan:
        uplink, name = conf.uplink, tap_name(key, conf)
        vlan = uplink.vlan if isinstance(uplink, LinuxUplink) else 0
        mac = conf.mac or key.mac()
        tap = HostTap(name, conf.queues, conf.tap.owner, conf.tap.group, mac, conf.mtu, vlan)
        bind: list[Step] = [*leased_addresses.addresses(conf)]
        if isinstance(uplink, LinuxUplink) and uplink.gateway:
            bind.append(bridge.Gateway(uplink.bridge, uplink.vlan))
        if conf.placeholder:
            bind += [Placeholder(key.ifname), common.Configure(key.ifname, silenced=True)]
        bind += kata.gateway_steps(key, conf, conf.placeholder)
        entry = (kata.DanEntry(name, conf.queues),) if conf.runtime == "kata" else ()
        if isinstance(uplink, OvsUplink):
            before, port, ready = switch.port_steps(uplink, name, conf)
            return Plan((before, tap, *port), (*bind, ready, *entry))
        assert isinstance(uplink, LinuxUplink)
        limits = shape.alone(conf, name)
        return Plan((bridge.Bridge(uplink.bridge, uplink.vlan), tap), (*limits, *bind, *entry))

    def in_pod(self, conf: NetConf) -> bool:
        return conf.placeholder

    def interfaces(
        self, key: AttachmentKey, conf: NetConf, facts: dict[str, Any], netns: str
    ) -> tuple[Interface, ...]:
        tap = Interface(tap_name(key, conf), facts["tap_mac"], facts["mtu"])
        return (Interface(key.ifname, facts["mac"], facts["mtu"], netns), tap)

    def device(
        self, key: AttachmentKey, conf: NetConf, facts: dict[str, Any], netns: str
    ) -> Device:
        return Device(
            id=key.tap_link,
            kind="tap",
            tap=tap_name(key, conf),
            mac=facts["mac"],
            mtu=facts["mtu"],
            queues=conf.queues,
            offload=facts.get("offload", True),
        )

    def ready(self, conf: NetConf, node: Node) -> None:
        require_tun()
        shape.ready(conf)
        if isinstance(conf.uplink, OvsUplink):
            switch.ready(node, conf.uplink, dpdk=False)


def require_tun() -> None:
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise NotReady("/dev/net/tun cannot be opened; load the kernel module tun")


def tap_name(key: AttachmentKey, conf: NetConf) -> str:
    return conf.tap.name or key.tap_port
