"""Mode veth: a plain container's interface, for networks that serve containers and VMs."""

from __future__ import annotations

from typing import Any

from cni.attach.context import Node
from cni.attach.plan import Plan
from cni.config.network import NetConf
from cni.config.uplinks import OvsUplink
from cni.modes.base import host_interface, pod_interface, port_steps
from cni.modes.steps import kata, switch
from cni.modes.steps import limits as shape
from cni.spec.types import AttachmentKey, Interface


class Veth:
    name = "veth"

    def plan(self, key: AttachmentKey, conf: NetConf) -> Plan:
        # Kata redirects the interface to a tap of its own, and its namespace must be silent then.
        prepare, veth, rest = port_steps(key, conf, silenced=conf.runtime != "any")
        gateway = kata.gateway_steps(key, conf, in_pod=True)
        limits = shape.alone(conf, key.host_link)
        return Plan(prepare, (*veth, *limits, *rest, *gateway))

    def in_pod(self, conf: NetConf) -> bool:
        return True

    def interfaces(
        self, key: AttachmentKey, conf: NetConf, facts: dict[str, Any], netns: str
    ) -> tuple[Interface, ...]:
        return (pod_interface(key, facts, netns), host_interface(key, facts))

    def device(self, key: AttachmentKey, conf: NetConf, facts: dict[str, Any], netns: str) -> None:
        return None

    def ready(self, conf: NetConf, node: Node) -> None:
        shape.ready(conf)
        if isinstance(conf.uplink, OvsUplink):
            switch.ready(node, conf.uplink, dpdk=False)
