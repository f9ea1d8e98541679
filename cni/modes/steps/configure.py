"""Addresses and routes on the pod's interface, as CNI promised them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.plan import Kinds, Step
from cni.errors import BadConfig
from cni.kernel import rtnl_encode
from cni.modes.steps.links import MIN_MTU_V6, Nic, need_index, no_link_local, write_sysctl
from cni.spec.types import Result, family_of, gateways_by_family


@dataclass(frozen=True)
class Configure(Step):
    """The interface is set up and gets its addresses and routes.

    With `silenced` it is the guest's: its namespace claims no link-local address.
    """

    needs: ClassVar[Kinds] = (Nic,)
    ifname: str
    silenced: bool

    def do(self, cx: Context) -> None:
        index, mtu = need_index(cx.pod_netlink, self.ifname), cx.facts[Nic].mtu
        addresses = cx.addresses()
        if any(":" in ip.address for ip in addresses.ips):
            with cx.in_pod():
                _enable_ipv6(self.ifname, mtu)
        cx.pod_netlink.batch(
            *(no_link_local(index, mtu) if self.silenced else ()),
            rtnl_encode.set_link(index, up=True),
            *(rtnl_encode.add_address(index, ip.address) for ip in addresses.ips),
            *_routes(index, addresses),
        )


def _routes(index: int, addresses: Result) -> list[rtnl_encode.Message]:
    gateways = gateways_by_family(addresses.ips)
    return [
        rtnl_encode.add_route(
            route.dst,
            gateway=route.gw or gateways.get(family_of(route.dst)),
            index=index,
            table=route.table,
            priority=route.priority or None,
            mtu=route.mtu or None,
            advmss=route.advmss or None,
            scope=route.scope,
        )
        for route in addresses.routes
    ]


def _enable_ipv6(ifname: str, mtu: int) -> None:
    if mtu < MIN_MTU_V6:
        raise BadConfig(f"mtu: {mtu} is too small for IPv6, which needs {MIN_MTU_V6} (RFC 8200)")
    write_sysctl(f"ipv6/conf/{ifname}/disable_ipv6", "0")
