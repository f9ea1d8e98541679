"""The node as a router, which `linux.gateway` makes it.

Source: Documentation/networking/ip-sysctl.rst, forwarding and accept_ra.
"""

from __future__ import annotations

from cni.errors import CheckFailed
from cni.kernel import sysctl
from cni.kernel.netlink import Netlink

_RTPROT_RA = 9
_V4, _V6 = "ipv4/ip_forward", "ipv6/conf/all/forwarding"


def enable(netlink: Netlink, *, v6: bool) -> None:
    """Switch forwarding on, where it is not; the node keeps what routers have advertised to it.

    A router takes no advertisement and drops the routes of those before, unless the interface's
    accept_ra is 2.
    """
    if v6 and sysctl.read(_V6) == "0":
        for index in {r.oif for r in netlink.routes() if r.protocol == _RTPROT_RA}:
            if link := netlink.link(index=index):
                _keep_accepting(f"ipv6/conf/{link.name}/accept_ra")
    sysctl.write(_V6 if v6 else _V4, "1")


def _keep_accepting(name: str) -> None:
    if sysctl.read(name) == "1":
        sysctl.write(name, "2")


def check(*, v6: bool) -> None:
    """Raise CheckFailed when forwarding is off."""
    name = _V6 if v6 else _V4
    if sysctl.read(name) == "0":
        raise CheckFailed(f"/proc/sys/net/{name}: expected 1 for linux.gateway, found 0; set it")
