"""The pod's addresses, told to its neighbours on behalf of the guest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.plan import Kinds, Step
from cni.config.network import NetConf
from cni.config.uplinks import OvsUplink
from cni.modes.steps.kata import GatewayMacs
from cni.modes.steps.links import Nic


def announcements(conf: NetConf, ifname: str) -> tuple[Step, ...]:
    """Return the step that announces a fixed address, where that is safe.

    The address is the pod's alone: an IPAM plugin has given it. With OVN, whose flows answer, and
    with kube-ovn, which may migrate the VM that still runs elsewhere, nobody is told.
    """
    ovn = isinstance(conf.uplink, OvsUplink) and conf.uplink.ovn
    if not conf.fixed_address or not conf.ipam or ovn or conf.kubeovn:
        return ()
    return (Announcement(ifname),)


@dataclass(frozen=True)
class Announcement(Step):
    """Neighbours that knew the address with another MAC learn the new one, and so do switches."""

    needs: ClassVar[Kinds] = (Nic,)
    ifname: str

    def do(self, cx: Context) -> None:
        known = cx.facts.get(GatewayMacs)
        neighbours = known.entries if known else ()
        cx.node.announcer.announce(cx.pod, self.ifname, cx.facts[Nic].mac, neighbours)
