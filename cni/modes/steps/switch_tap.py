"""The guest's tap that is itself a port of the switch, in the host's namespace."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.plan import Kinds, Step
from cni.errors import AttachmentExists, BadConfig, CheckFailed
from cni.kernel import rtnl_encode, tuntap
from cni.kernel.netlink import Exists
from cni.kernel.rtnl_decode import TapInfo
from cni.modes.steps.bridge import BridgeIndex, expect_vlan, restrict_to_vlan
from cni.modes.steps.guard import hang_guard
from cni.modes.steps.links import (
    IN_HOST,
    Nic,
    PortMtu,
    TapMac,
    expect_link,
    expect_up,
    has_addrgenmode,
    need_index,
    refuse_advertisements,
    remove_host_link,
)
from cni.spec.types import AttachmentKey


@dataclass(frozen=True)
class SwitchTap(Step):
    """A persistent tap in the host's namespace. `mac` is the guest's; `mtu` 0 takes the bridge's.

    With `vlan` it is an untagged member of that VLAN of a Linux bridge. It is made under the
    derived name and takes `name` together with our group, so that an undo never removes somebody
    else's tap.
    """

    needs: ClassVar[Kinds] = (PortMtu,)
    provides: ClassVar[Kinds] = (Nic, TapMac)
    name: str
    queues: int
    owner: int | None
    group: int | None
    mac: str = field(compare=False)
    mtu: int
    vlan: int

    def do(self, cx: Context) -> None:
        derived, mtu = cx.key.tap_port, self.mtu or cx.facts[PortMtu].mtu
        try:
            index = tuntap.create_tap(
                derived, queues=self.queues, owner=self._owner, group=self.group
            )
        except Exists as e:
            raise AttachmentExists(f"interface {derived} exists already; DEL comes first") from e
        refuse_advertisements(derived)
        cx.facts.put(Nic(self.mac, mtu), TapMac(cx.key.port_mac))
        self._name(cx, index, derived, mtu)
        if self.vlan:
            restrict_to_vlan(cx.host_netlink, index, self.vlan)
        hang_guard(cx, cx.host_netlink, index)
        cx.host_netlink.batch(rtnl_encode.set_link(index, up=True))

    @property
    def _owner(self) -> int | None:
        return tuntap.effective_owner(self.owner, self.group)

    def _name(self, cx: Context, index: int, derived: str, mtu: int) -> None:
        bridge = cx.facts.get(BridgeIndex)
        named = rtnl_encode.set_link(
            index,
            mtu=mtu,
            mac=cx.key.port_mac,
            master=bridge.index if bridge else None,
            group=cx.key.group,
            name=None if self.name == derived else self.name,
            addrgenmode_none=has_addrgenmode(mtu),
        )
        try:
            cx.host_netlink.batch(named)
        except Exists as e:
            raise BadConfig(
                f"tap.name: {self.name} exists in the host's namespace; choose another"
            ) from e

    def bind(self, cx: Context) -> None:
        cx.facts.put(replace(cx.facts[Nic], mac=self.mac))

    def renew(self, cx: Context, former: AttachmentKey) -> None:
        self._expect_unused(cx)
        tuntap.reset_tap(self.name, self.queues)
        self._expect_unused(cx)
        index = need_index(cx.host_netlink, self.name)
        cx.host_netlink.batch(rtnl_encode.set_link(index, mac=cx.facts[TapMac].mac))

    def _expect_unused(self, cx: Context) -> None:
        """Raise CheckFailed when a process has the tap open: it could have passed it on.

        The kernel counts the queues of multi-queue taps alone; of the others, a second open is
        refused.
        """
        link = expect_link(cx.host_netlink, self.name, IN_HOST)
        made = TapInfo(self._owner, self.group, True, 0)
        if link.tap != made:
            raise CheckFailed(f"{self.name}: expected as made, {made}, found {link.tap}")

    def undo(self, cx: Context) -> None:
        link = cx.host_netlink.link(self.name)
        ours = link is not None and link.group == cx.key.group
        remove_host_link(cx, self.name if ours else cx.key.tap_port)

    def check(self, cx: Context) -> None:
        link = expect_link(cx.host_netlink, self.name, IN_HOST)
        expect_up(link, cx.facts[Nic].mtu)
        bridge = cx.facts.get(BridgeIndex)
        if bridge and link.master != bridge.index:
            raise CheckFailed(f"{self.name}: expected a port of its bridge, found it is none")
        expect_vlan(cx.host_netlink, link, self.vlan)
