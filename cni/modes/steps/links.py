"""What several steps do to links, and the facts that they share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

from cni.attach.context import Context
from cni.attach.facts import Fact
from cni.attach.plan import Step
from cni.errors import CheckFailed, VmlinkError
from cni.kernel import rtnl_encode, sysctl
from cni.kernel.netlink import Netlink
from cni.kernel.rtnl_decode import LinkInfo

MIN_MTU_V6 = 1280  # below it a link has no IPv6 at all (RFC 8200, section 5)
IN_POD, IN_HOST = "in the pod's namespace", "in the host's namespace"


@dataclass(frozen=True)
class Nic(Fact):
    """The guest's NIC: its MAC address, and its MTU in bytes."""

    mac: str
    mtu: int


@dataclass(frozen=True)
class PortMtu(Fact):
    """The MTU, in bytes, that the bridge or switch gives a port without one of its own."""

    mtu: int


@dataclass(frozen=True)
class TapMac(Fact):
    """The MAC address of the tap itself, which is not the guest's."""

    mac: str


class PodLink(Step):
    """A link that the step makes in the pod's namespace, with the attachment's IFLA_GROUP.

    The group tells it from an interface of the same name that is not ours. A subclass makes the
    link; this class undoes and checks it.
    """

    def link(self) -> str:
        """Return the name of the link."""
        raise NotImplementedError

    def links(self) -> tuple[str, ...]:
        return (self.link(),)

    def undo(self, cx: Context) -> None:
        remove_pod_link(cx, self.link())

    def check(self, cx: Context) -> None:
        expect_link(cx.pod_netlink, self.link(), IN_POD)


def need_link(netlink: Netlink, name: str) -> LinkInfo:
    """Return a link that was there a moment ago. Raises VmlinkError when it has gone since."""
    link = netlink.link(name)
    if link is None:
        raise _gone(name)
    return link


def need_index(netlink: Netlink, name: str) -> int:
    """Return the ifindex of a link that was there a moment ago. Raises VmlinkError."""
    index = netlink.index(name)
    if index is None:
        raise _gone(name)
    return index


def _gone(name: str) -> VmlinkError:
    return VmlinkError(f"interface {name} was removed while it was being configured; call again")


def expect_link(netlink: Netlink, name: str, where: str) -> LinkInfo:
    """Return the link. Raises CheckFailed when it is not there."""
    link = netlink.link(name)
    if link is None:
        raise CheckFailed(f"{name}: expected {where}, found nothing")
    return link


def expect_up(link: LinkInfo, mtu: int) -> None:
    """Raise CheckFailed unless the link is up and has this MTU (bytes)."""
    if link.mtu != mtu or not link.up:
        state = "up" if link.up else "down"
        raise CheckFailed(f"{link.name}: expected up with MTU {mtu}, found {state} with {link.mtu}")


def expect_nic(link: LinkInfo, nic: Nic) -> None:
    """Raise CheckFailed unless the pod's interface still has the guest's MAC and MTU."""
    if (link.mac, link.mtu) != (nic.mac, nic.mtu):
        raise CheckFailed(
            f"{link.name}: expected MAC {nic.mac} and MTU {nic.mtu}, which the guest has, found "
            f"{link.mac} and {link.mtu}; let vmlink's keys mac and mtu, or a plugin before it, "
            "change them"
        )


def no_link_local(index: int, mtu: int) -> list[rtnl_encode.Message]:
    """Return the message that keeps a link from making itself an IPv6 link-local address.

    Runtimes take every link with an address for the guest's: Kata's scan of the namespace does.
    """
    if not has_addrgenmode(mtu):
        return []
    return [rtnl_encode.set_link(index, addrgenmode_none=True)]


def refuse_advertisements(name: str) -> None:
    """Let the calling thread's namespace take no router advertisement that comes in on a link.

    A guest's would give it addresses and a default route. Netlink cannot set this. Raises
    VmlinkError.
    """
    sysctl.write_if_there(f"ipv6/conf/{name}/accept_ra", "0")


def has_addrgenmode(mtu: int) -> bool:
    """Return whether a link with this MTU (bytes) has an IPv6 address generation mode here."""
    return mtu >= MIN_MTU_V6 and _has_ipv6()


@cache
def _has_ipv6() -> bool:
    return os.path.exists("/proc/sys/net/ipv6")


def remove_pod_link(cx: Context, name: str) -> None:
    """Delete a link of ours and, by the same request, all links that carry its group."""
    if cx.pod_or_none is None or not cx.pod_netlink.index(name):
        return
    indexes = (cx.pod_netlink.index(other) for other in {name, *cx.pod_links})
    together = [index for index in indexes if index]
    cx.node.deleter.delete(cx.pod, cx.key.group, together, cx.cancel.remaining())
    # A tap has its name before it has its group.
    if name == cx.key.tap_link and (half := cx.pod_netlink.index(name)):
        cx.node.deleter.delete(cx.pod, None, [half], cx.cancel.remaining())


def remove_host_link(cx: Context, name: str) -> None:
    """Delete a link of ours in the host's namespace; a missing one is no error."""
    if index := cx.host_netlink.index(name):
        cx.node.deleter.delete(cx.node.host, None, [index], cx.cancel.remaining())
