"""Mode veth: a plain container's interface, for networks that serve containers and VMs."""

from __future__ import annotations

from cni.attach.context import Node
from cni.attach.facts import Facts
from cni.attach.plan import Plan
from cni.config.mode_rules import ModeRules
from cni.config.network import NetConf
from cni.modes import ports
from cni.modes.base import Mode
from cni.modes.pod_veth import host_interface, pod_interface, veth_plan
from cni.spec.types import AttachmentKey, Interface


class Veth(Mode):
    """A veth pair between the pod and the switch."""

    name = "veth"
    rules = ModeRules(
        uplinks=("linux", "ovs"),
        runtimes=dict.fromkeys(("any", "kata", "kata-go"), "veth"),
        hears=True,
    )

    def plan(self, key: AttachmentKey, conf: NetConf) -> Plan:
        return veth_plan(
            key,
            conf,
            # Kata redirects the interface to a tap of its own: its namespace must be silent then.
            silenced=conf.runtime != "any",
            limits=conf.bandwidth,
            behind=ports.link_limits(conf, key.host_link),
            end=(*ports.gateway_neighbours(conf, key.ifname), *ports.scanned_by_kata(conf)),
        )

    def interfaces(
        self, key: AttachmentKey, conf: NetConf, facts: Facts, netns: str
    ) -> tuple[Interface, ...]:
        return (pod_interface(key, facts, netns), host_interface(key, facts))

    def device(self, key: AttachmentKey, conf: NetConf, facts: Facts, netns: str) -> None:
        return None

    def ready(self, conf: NetConf, node: Node) -> None:
        ports.require_limits(conf, by_kernel=not ports.on_switch(conf))
        ports.require_switch(conf, node)
