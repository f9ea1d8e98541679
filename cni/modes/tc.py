"""Mode tc: what reaches the pod's interface is mirrored to a tap, and back.

The pod's interface may be vmlink's own veth or, chained, that of any other plugin.
"""

from __future__ import annotations

from typing import Any

from cni.attach.context import Node
from cni.attach.plan import Plan
from cni.config.network import NetConf
from cni.config.uplinks import Chained, OvsUplink
from cni.errors import NotReady, VmlinkError
from cni.kernel import redirect
from cni.modes.base import host_interface, pod_interface, port_steps
from cni.modes.steps import common, switch
from cni.modes.steps import limits as shape
from cni.modes.tap import require_tun
from cni.spec.types import AttachmentKey, Interface
from cni.vmm.device import Device


class Tc:
    name = "tc"

    def plan(self, key: AttachmentKey, conf: NetConf) -> Plan:
        tap = common.Tap(tap_name(key, conf), conf.queues, conf.tap.owner, conf.tap.group)
        chained = isinstance(conf.uplink, Chained)
        redirect = common.Redirect(key.ifname, tap.name, conf.redirect, chained)
        limits = shape.between(conf, key.ifname, tap.name, chained)
        if isinstance(conf.uplink, Chained):
            return Plan((), (common.Chain(key.ifname), tap, *limits, redirect))
        prepare, veth, rest = port_steps(key, conf, silenced=True)
        return Plan(prepare, (*veth, tap, *limits, redirect, *rest))

    def in_pod(self, conf: NetConf) -> bool:
        return True

    def interfaces(
        self, key: AttachmentKey, conf: NetConf, facts: dict[str, Any], netns: str
    ) -> tuple[Interface, ...]:
        tap = Interface(tap_name(key, conf), facts["tap_mac"], facts["mtu"], netns)
        if isinstance(conf.uplink, Chained):
            return (tap,)
        return (pod_interface(key, facts, netns), tap, host_interface(key, facts))

    def device(
        self, key: AttachmentKey, conf: NetConf, facts: dict[str, Any], netns: str
    ) -> Device:
        return Device(
            id=key.tap_link,
            kind="tap",
            netns=netns,
            tap=tap_name(key, conf),
            mac=facts["mac"],
            mtu=facts["mtu"],
            queues=conf.queues,
        )

    def ready(self, conf: NetConf, node: Node) -> None:
        require_tun()
        shape.ready(conf)
        if isinstance(conf.uplink, OvsUplink):
            switch.ready(node, conf.uplink, dpdk=False)
        try:
            redirect.choose(conf.redirect)
        except VmlinkError as e:
            raise NotReady(e.msg, e.details) from e


def tap_name(key: AttachmentKey, conf: NetConf) -> str:
    return conf.tap.name or key.tap_link
