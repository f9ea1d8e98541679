"""The guest's tap in the pod's namespace, behind the pod's interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.plan import Kinds
from cni.errors import BadConfig
from cni.kernel import rtnl_encode, tuntap
from cni.kernel.netlink import Exists
from cni.modes.steps.guard import hang_guard
from cni.modes.steps.links import (
    IN_POD,
    Nic,
    PodLink,
    TapMac,
    expect_link,
    expect_nic,
    expect_up,
    has_addrgenmode,
    refuse_advertisements,
    remove_pod_link,
)


@dataclass(frozen=True)
class Tap(PodLink):
    """A persistent tap with vnet_hdr and `queues` pairs, for `owner` (uid) and `group` (gid).

    It is made under the derived name and takes `name` together with our group, so that an undo
    never removes somebody else's tap.
    """

    needs: ClassVar[Kinds] = (Nic,)
    provides: ClassVar[Kinds] = (TapMac,)
    name: str
    queues: int
    owner: int | None
    group: int | None

    def link(self) -> str:
        return self.name

    def do(self, cx: Context) -> None:
        derived, mtu, mac = cx.key.tap_link, cx.facts[Nic].mtu, cx.key.mac("tap")
        owner = tuntap.effective_owner(self.owner, self.group)
        with cx.in_pod():
            index = tuntap.create_tap(derived, queues=self.queues, owner=owner, group=self.group)
            refuse_advertisements(derived)
        cx.facts.put(TapMac(mac))
        named = rtnl_encode.set_link(
            index,
            mtu=mtu,
            mac=mac,
            group=cx.key.group,
            name=None if self.name == derived else self.name,
            addrgenmode_none=has_addrgenmode(mtu),
        )
        try:
            hang_guard(cx, cx.pod_netlink, index)
            cx.pod_netlink.batch(named, rtnl_encode.set_link(index, up=True))
        except Exists as e:
            raise BadConfig(
                f"tap.name: {self.name} exists in the pod's namespace; choose another"
            ) from e

    def undo(self, cx: Context) -> None:
        super().undo(cx)
        remove_pod_link(cx, cx.key.tap_link)

    def check(self, cx: Context) -> None:
        nic = cx.facts[Nic]
        expect_nic(expect_link(cx.pod_netlink, cx.key.ifname, IN_POD), nic)
        expect_up(expect_link(cx.pod_netlink, self.name, IN_POD), nic.mtu)
