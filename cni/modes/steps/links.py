"""What the steps do to links, and what they say when one is not there."""

from __future__ import annotations

import os
from functools import cache

from cni.attach.context import Context
from cni.errors import CheckFailed, VmlinkError
from cni.kernel import rtnl_encode
from cni.kernel.netlink import Netlink
from cni.kernel.rtnl_decode import LinkInfo

MIN_MTU_V6 = 1280  # below it a link has no IPv6 at all (RFC 8200, section 5)


def need_link(netlink: Netlink, name: str) -> LinkInfo:
    """The link, which was there a moment ago."""
    link = netlink.link(index=need_index(netlink, name))
    if link is None:
        raise VmlinkError(f"interface {name} went away while it was being configured")
    return link


def need_index(netlink: Netlink, name: str) -> int:
    index = netlink.index(name)
    if index is None:
        raise VmlinkError(f"interface {name} went away while it was being configured")
    return index


def expect_link(netlink: Netlink, name: str, where: str) -> LinkInfo:
    link = netlink.link(name)
    if link is None:
        raise CheckFailed(f"{name}: expected {where}, found nothing")
    return link


def expect_up(link: LinkInfo, mtu: int) -> None:
    if link.mtu != mtu or not link.up:
        found = "up" if link.up else "down"
        raise CheckFailed(f"{link.name}: expected up with MTU {mtu}, found {found} with {link.mtu}")


def silent(index: int, mtu: int) -> list[rtnl_encode.Message]:
    """No link-local address: runtimes take every addressed link for the guest's (Kata's scan)."""
    return [rtnl_encode.set_link(index, addrgenmode_none=True)] if can_silence(mtu) else []


def can_silence(mtu: int) -> bool:
    return mtu >= MIN_MTU_V6 and _has_ipv6()


@cache
def _has_ipv6() -> bool:
    return os.path.exists("/proc/sys/net/ipv6")


def remove_pod_link(cx: Context, name: str) -> None:
    """Delete a link of ours, and with it, in one request, all that carry its group."""
    if cx.pod_or_none is None or not cx.pod_netlink.index(name):
        return
    found = (cx.pod_netlink.index(other) for other in {name, *cx.pod_links})
    together = [index for index in found if index]
    cx.reaper.delete(cx.pod, cx.key.group, together, cx.cancel.remaining())
    # A tap has its name before it has its group.
    if name == cx.key.tap_link and (half := cx.pod_netlink.index(name)):
        cx.reaper.delete(cx.pod, None, [half], cx.cancel.remaining())


def remove_host_links(cx: Context, *names: str) -> None:
    """Delete links of ours in the host's namespace, all at once; absent is done."""
    found = (cx.host_netlink.index(name) for name in names)
    cx.reaper.delete(cx.host, None, [index for index in found if index], cx.cancel.remaining())


def socket_path(cx: Context) -> str:
    """Where the VMM makes the socket of vhost-user, in a directory of the attachment's own."""
    return f"{cx.node.run_dir}/vhostuser/{cx.key.wire}/sock"


def write_sysctl(name: str, value: str) -> None:
    path = "/proc/sys/net/" + name
    try:
        with open(path, "r+") as f:
            if f.read().strip() != value:
                f.seek(0)
                f.write(value)
    except OSError as e:
        raise VmlinkError(f"cannot set {path} to {value}: {e.strerror}") from e
