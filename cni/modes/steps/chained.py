"""The interface of the plugin before us in a chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.plan import Kinds, Step
from cni.errors import BadConfig
from cni.modes.steps.links import IN_POD, Nic, expect_link


@dataclass(frozen=True)
class ChainedInterface(Step):
    """An interface that another plugin made and keeps: its MAC and MTU become the guest's."""

    provides: ClassVar[Kinds] = (Nic,)
    ifname: str

    def do(self, cx: Context) -> None:
        link = cx.pod_netlink.link(self.ifname)
        if link is None:
            raise BadConfig(
                f"prevResult: {self.ifname} is not in the pod's namespace; put the plugin that "
                "makes it before vmlink"
            )
        cx.facts.put(Nic(link.mac, link.mtu))

    def check(self, cx: Context) -> None:
        expect_link(cx.pod_netlink, self.ifname, IN_POD)
