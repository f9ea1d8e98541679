"""Announces the pod's addresses to its neighbours on behalf of the guest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.plan import Kinds, Step
from cni.config.network import NetConf
from cni.config.uplinks import OvsUplink
from cni.modes.steps.kata import gateway_macs
from cni.modes.steps.links import Nic


def announcements(conf: NetConf, ifname: str) -> tuple[Step, ...]:
    """Return the step that announces a fixed address, where that is safe.

    An IPAM plugin has given the address, so no other pod has it. Nothing is announced with OVN,
    whose flows answer, and with kube-ovn: the VM may be migrating and still run on another node.
    """
    ovn = isinstance(conf.uplink, OvsUplink) and conf.uplink.ovn
    if not conf.fixed_address or not conf.ipam or ovn or conf.kubeovn:
        return ()
    return (Announcement(ifname),)


@dataclass(frozen=True)
class Announcement(Step):
    """Gratuitous ARP and unsolicited NA: neighbours and switches learn the address's new MAC."""

    needs: ClassVar[Kinds] = (Nic,)
    ifname: str

    def do(self, cx: Context) -> None:
        mac, neighbours = cx.facts[Nic].mac, gateway_macs(cx.facts)
        cx.node.announcer.announce(cx.pod, self.ifname, mac, neighbours)
