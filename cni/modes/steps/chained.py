"""The interface of the plugin before us in a chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.facts import Fact
from cni.attach.plan import Kinds, Step
from cni.errors import BadConfig
from cni.kernel import rtnl_encode
from cni.modes.steps.links import IN_POD, Nic, expect_link


@dataclass(frozen=True)
class SetUp(Fact):
    """The ifindex of a link that was down."""

    index: int


@dataclass(frozen=True)
class ChainedInterface(Step):
    """An interface that another plugin made and keeps: its MAC and MTU become the guest's.

    One that is down is set up: the plugins behind expect that, and so does the guest.
    """

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
        if not link.up:
            cx.facts.put(SetUp(link.index))
            cx.pod_netlink.batch(rtnl_encode.set_link(link.index, up=True))

    def undo(self, cx: Context) -> None:
        was_down = cx.facts.get(SetUp)
        if was_down and cx.pod_or_none and cx.pod_netlink.index(self.ifname) == was_down.index:
            cx.pod_netlink.batch(rtnl_encode.set_link(was_down.index, up=False))

    def check(self, cx: Context) -> None:
        expect_link(cx.pod_netlink, self.ifname, IN_POD)
