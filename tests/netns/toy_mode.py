"""A mode of the tests' own: the pod's NIC is a dummy. It has no clean-up code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cni.attach.context import Context, Node
from cni.attach.facts import Facts
from cni.attach.plan import Kinds, Plan
from cni.config.mode_rules import ModeRules
from cni.config.network import NetConf
from cni.modes import register
from cni.modes.base import Mode
from cni.modes.steps.addresses import address_steps
from cni.modes.steps.configure import Configure
from cni.modes.steps.links import Nic
from cni.modes.steps.placeholder import Placeholder
from cni.spec.types import AttachmentKey, Interface


@dataclass(frozen=True)
class ToyLink(Placeholder):
    """A dummy in the pod's namespace."""

    needs: ClassVar[Kinds] = ()
    provides: ClassVar[Kinds] = (Nic,)
    mac: str

    def do(self, cx: Context) -> None:
        cx.facts.put(Nic(self.mac, 1500))
        super().do(cx)


class Toy(Mode):
    """A dummy with addresses, in a network that names a Linux bridge and does not use it."""

    name = "toy"
    rules = ModeRules(uplinks=("linux",), runtimes={"any": "toy"})

    def plan(self, key: AttachmentKey, conf: NetConf) -> Plan:
        link = ToyLink(key.ifname, conf.mac or key.mac())
        return Plan((), (*address_steps(conf), link, Configure(key.ifname, silenced=True)))

    def interfaces(
        self, key: AttachmentKey, conf: NetConf, facts: Facts, netns: str
    ) -> tuple[Interface, ...]:
        return (Interface(key.ifname, facts[Nic].mac, facts[Nic].mtu, netns),)

    def device(self, key: AttachmentKey, conf: NetConf, facts: Facts, netns: str) -> None:
        return None

    def ready(self, conf: NetConf, node: Node) -> None:
        return None


def load() -> None:
    """Make the mode known, in vmlinkd or in a test."""
    register(Toy())
