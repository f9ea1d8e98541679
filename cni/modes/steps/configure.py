"""Addresses and routes on the pod's interface, as CNI promised them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.plan import Kinds, Step
from cni.errors import BadConfig
from cni.kernel import rtnl_encode, sysctl
from cni.kernel.netlink import Exists
from cni.kernel.netlink_message import Message
from cni.kernel.route_encode import add_route
from cni.modes.steps.links import (
    MIN_MTU_V6,
    Nic,
    need_index,
    no_link_local,
    refuse_advertisements,
)
from cni.spec.routing import onlink, resolved
from cni.spec.types import Result


@dataclass(frozen=True)
class Configure(Step):
    """The interface is set up and gets its addresses and routes.

    With `silenced` it is the guest's: its namespace claims no link-local address. One with neither
    `silenced` nor addresses may get its own from a router, and CNI promises it none.
    """

    needs: ClassVar[Kinds] = (Nic,)
    ifname: str
    silenced: bool

    def do(self, cx: Context) -> None:
        index, mtu = need_index(cx.pod_netlink, self.ifname), cx.facts[Nic].mtu
        addresses = cx.addresses()
        if self.silenced or addresses.ips:
            with cx.in_pod():
                if any(":" in ip.address for ip in addresses.ips):
                    _enable_ipv6(self.ifname, mtu)
                refuse_advertisements(self.ifname)
        links = (
            *(no_link_local(index, mtu) if self.silenced else ()),
            rtnl_encode.set_link(index, up=True),
            *(rtnl_encode.add_address(index, ip.address) for ip in addresses.ips),
        )
        for error in cx.pod_netlink.attempt(*links, *_routes(index, addresses)):
            twice = isinstance(error, Exists) and error.position >= len(links)
            if error and not twice:  # a route that is there already, perhaps the kernel's own
                raise error


def _routes(index: int, addresses: Result) -> list[Message]:
    """Return the routes: before the kernel's own, and each behind those that it stands behind."""
    routes = resolved(addresses.routes, addresses.ips)
    on_link = onlink(routes, (ip.address for ip in addresses.ips))
    messages, seen = [], set()
    for route in routes:
        rank = (route.dst, route.table, route.priority)
        message = add_route(
            route.dst,
            gateway=route.gw or None,
            index=index,
            table=route.table,
            priority=route.priority or None,
            mtu=route.mtu or None,
            advmss=route.advmss or None,
            scope=route.scope,
            onlink=route in on_link,
            place="last" if rank in seen else "first",
        )
        messages.append(message)
        seen.add(rank)
    return messages


def _enable_ipv6(ifname: str, mtu: int) -> None:
    if mtu < MIN_MTU_V6:
        raise BadConfig(f"mtu: {mtu} is too small for IPv6, which needs {MIN_MTU_V6} (RFC 8200)")
    sysctl.write(f"ipv6/conf/{ifname}/disable_ipv6", "0")
