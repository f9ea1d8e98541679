"""The tap that is itself a port of the switch, and a dummy that stands for it in the pod."""

from __future__ import annotations

from dataclasses import dataclass, field

from cni.attach.context import Context
from cni.attach.plan import Step
from cni.errors import AttachmentExists, BadConfig, CheckFailed
from cni.kernel import rtnl_encode, tuntap
from cni.kernel.netlink import Exists, Unsupported
from cni.kernel.rtnl_decode import TapInfo
from cni.modes.steps.bridge import host_mac, only_vlan
from cni.modes.steps.links import (
    can_silence,
    expect_link,
    expect_up,
    need_index,
    remove_host_links,
    remove_pod_link,
)
from cni.spec.types import AttachmentKey


@dataclass(frozen=True)
class HostTap(Step):
    """A persistent tap in the host's namespace. `mac` is the guest's; `mtu` 0 takes the bridge's;
    with `vlan` it is an untagged member of that VLAN of a Linux bridge.

    It is made under the derived name and takes `name` together with our group, so that an undo
    never removes somebody else's tap.
    """

    name: str
    queues: int
    owner: int | None
    group: int | None
    mac: str = field(compare=False)
    mtu: int
    vlan: int

    @property
    def _opener(self) -> int | None:
        """The kernel lets everybody open a tap that has neither an owner nor a group."""
        return 0 if self.owner is None and self.group is None else self.owner

    def do(self, cx: Context) -> None:
        derived = cx.key.tap_port
        try:
            index = tuntap.create_tap(
                derived, queues=self.queues, owner=self._opener, group=self.group
            )
        except Exists as e:
            raise AttachmentExists(f"interface {derived} exists already; DEL comes first") from e
        if self.mtu:
            cx.facts["mtu"] = self.mtu
        cx.facts.update(mac=self.mac, tap_mac=host_mac(cx.key))
        named = rtnl_encode.set_link(
            index,
            mtu=cx.facts["mtu"],
            mac=cx.facts["tap_mac"],
            master=cx.facts.get("bridge_index"),
            group=cx.key.group,
            name=None if self.name == derived else self.name,
            addrgenmode_none=can_silence(cx.facts["mtu"]),
        )
        try:
            cx.host_netlink.batch(named)
        except Exists as e:
            raise BadConfig(f"tap.name: {self.name} exists in the host's namespace") from e
        if self.vlan:
            only_vlan(cx.host_netlink, index, self.vlan)
        cx.host_netlink.batch(rtnl_encode.set_link(index, up=True))

    def bind(self, cx: Context) -> None:
        cx.facts["mac"] = self.mac

    def renew(self, cx: Context, former: AttachmentKey) -> None:
        self._expect_unused(cx)
        tuntap.reset_tap(self.name, self.queues)
        self._expect_unused(cx)
        index = need_index(cx.host_netlink, self.name)
        cx.host_netlink.batch(rtnl_encode.set_link(index, mac=cx.facts["tap_mac"]))

    def _expect_unused(self, cx: Context) -> None:
        """Who opens a tap can give it to others. The kernel counts the queues of those alone that
        may have several; of the others, a second open is refused."""
        link = expect_link(cx.host_netlink, self.name, "in the host's namespace")
        made = TapInfo(self._opener, self.group, True, 0)
        if link.tap != made:
            raise CheckFailed(f"{self.name}: expected as made, {made}, found {link.tap}")

    def undo(self, cx: Context) -> None:
        link = cx.host_netlink.link(self.name)
        named = self.name if link and link.group == cx.key.group else cx.key.tap_port
        remove_host_links(cx, named, cx.key.ifb_link)

    def check(self, cx: Context) -> None:
        link = expect_link(cx.host_netlink, self.name, "in the host's namespace")
        expect_up(link, cx.facts["mtu"])
        if link.master != cx.facts.get("bridge_index", link.master):
            raise CheckFailed(f"{self.name}: is no longer a port of its bridge")


@dataclass(frozen=True)
class Placeholder(Step):
    """A dummy with the guest's name, MAC and MTU, for tools that look into the pod's namespace."""

    ifname: str

    def links(self) -> tuple[str, ...]:
        return (self.ifname,)

    def do(self, cx: Context) -> None:
        facts, group = cx.facts, cx.key.group
        # An ifb to which nothing is redirected is as good; small kernels have the one or the other.
        for kind in ("dummy", "ifb"):
            link = rtnl_encode.new_dummy(self.ifname, facts["mac"], facts["mtu"], group, kind)
            (error,) = cx.pod_netlink.attempt(link)
            if not isinstance(error, Unsupported):
                break
        if isinstance(error, Exists):
            raise AttachmentExists(f"interface {self.ifname} exists already") from error
        if error:
            raise error

    def undo(self, cx: Context) -> None:
        remove_pod_link(cx, self.ifname)

    def check(self, cx: Context) -> None:
        expect_link(cx.pod_netlink, self.ifname, "in the pod's namespace")
