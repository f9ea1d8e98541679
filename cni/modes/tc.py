"""Mode tc: what reaches the pod's interface is mirrored to a tap, and back.

The pod's interface may be vmlink's own veth or, chained, that of any other plugin.
"""

from __future__ import annotations

import os
from typing import Any

from cni import redirect
from cni.config import Chained, NetConf
from cni.device import Device
from cni.errors import NotReady, VmlinkError
from cni.modes import steps
from cni.modes.base import host_interface, pod_interface, port_steps
from cni.plan import Plan
from cni.types import AttachmentKey, Interface


class Tc:
    name = "tc"

    def plan(self, key: AttachmentKey, conf: NetConf) -> Plan:
        tap = steps.Tap(_tap(key, conf), conf.queues, conf.tap.owner, conf.tap.group)
        chained = isinstance(conf.uplink, Chained)
        redirect = steps.Redirect(key.ifname, tap.name, conf.redirect, chained)
        if isinstance(conf.uplink, Chained):
            return Plan((), (steps.Chain(key.ifname), tap, redirect))
        prepare, bind = port_steps(key, conf, conf.uplink, silenced=True)
        return Plan((*prepare, tap), (*bind, redirect))

    def interfaces(
        self, key: AttachmentKey, conf: NetConf, facts: dict[str, Any], netns: str
    ) -> tuple[Interface, ...]:
        tap = Interface(_tap(key, conf), facts["tap_mac"], facts["mtu"], netns)
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
            tap=_tap(key, conf),
            mac=facts["mac"],
            mtu=facts["mtu"],
            queues=conf.queues,
        )

    def ready(self, conf: NetConf) -> None:
        if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            raise NotReady("/dev/net/tun cannot be opened; load the kernel module tun")
        try:
            redirect.choose(conf.redirect)
        except VmlinkError as e:
            raise NotReady(e.msg, e.details) from e


def _tap(key: AttachmentKey, conf: NetConf) -> str:
    return conf.tap.name or key.tap_link
