"""A link in the pod's namespace that stands for a NIC which is elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from cni.attach.context import Context
from cni.attach.plan import Kinds
from cni.errors import AttachmentExists
from cni.kernel import rtnl_encode
from cni.kernel.netlink import Exists, NetlinkError, Unsupported
from cni.modes.steps.links import IN_POD, Nic, PodLink, expect_link, expect_nic

# An ifb to which nothing is redirected is as good; small kernels have the one or the other.
_KINDS: tuple[Literal["dummy", "ifb"], ...] = ("dummy", "ifb")


@dataclass(frozen=True)
class Placeholder(PodLink):
    """A dummy with the guest's name, MAC and MTU, for tools that look into the pod's namespace."""

    needs: ClassVar[Kinds] = (Nic,)
    ifname: str

    def link(self) -> str:
        return self.ifname

    def do(self, cx: Context) -> None:
        error = self._make(cx)
        if isinstance(error, Exists):
            raise AttachmentExists(
                f"interface {self.ifname} exists already; DEL comes first"
            ) from error
        if error:
            raise error

    def check(self, cx: Context) -> None:
        expect_nic(expect_link(cx.pod_netlink, self.ifname, IN_POD), cx.facts[Nic])

    def _make(self, cx: Context) -> NetlinkError | None:
        nic, error = cx.facts[Nic], None
        for kind in _KINDS:
            # Kata in Go gives its guest the flags of this link: IFF_NOARP would make it mute.
            link = rtnl_encode.new_dummy(
                self.ifname, nic.mac, nic.mtu, cx.key.group, kind, arp=True
            )
            (error,) = cx.pod_netlink.attempt(link)
            if not isinstance(error, Unsupported):
                break
        return error
