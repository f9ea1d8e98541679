"""CHECK: is the pod's interface as prevResult says? Source: CNI specification, section CHECK."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_interface, ip_network
from typing import Any

from cni.errors import CheckFailed
from cni.kernel.netlink import Netlink, RouteInfo
from cni.kernel.rtnl_decode import LinkInfo
from cni.spec import result as results
from cni.spec.types import Result, Route


def judge(expected: Result, ifname: str, netlink: Netlink) -> None:
    """Raise CheckFailed for the first difference; `netlink` is the pod's.

    What others added is no difference: plugins later in the chain may have their reasons.
    """
    position = _position(expected, ifname)
    link = netlink.link(ifname)
    if link is None:
        raise CheckFailed(f"{ifname}: expected in the pod's namespace, found nothing")
    _judge_link(expected.interfaces[position].mac, link)
    wanted = [ip.address for ip in expected.ips if ip.interface in (position, None)]
    found = {ip_interface(a) for a in netlink.addresses(link.index)}
    for address in wanted:
        if ip_interface(address) not in found:
            raise CheckFailed(f"{ifname}: expected address {address}, found {_words(found)}")
    if expected.routes:
        routes = netlink.routes()
        for route in expected.routes:
            _judge_route(route, routes)


def compare(expected: Result, ifname: str, given: Mapping[str, Any]) -> None:
    """As `judge`, where the interface is the guest's alone: what ADD gave is all there is."""
    position = _position(expected, ifname)
    result = results.load(given)
    ours = next(i for i in result.interfaces if i.name == ifname)
    found = expected.interfaces[position]
    if found.mac.lower() != ours.mac:
        raise CheckFailed(f"{ifname}: expected MAC {found.mac}, found {ours.mac}")
    addresses = {ip_interface(ip.address) for ip in result.ips}
    for ip in expected.ips:
        if ip.interface in (position, None) and ip_interface(ip.address) not in addresses:
            raise CheckFailed(f"{ifname}: expected address {ip.address}, found {_words(addresses)}")


def _position(expected: Result, ifname: str) -> int:
    for n, interface in enumerate(expected.interfaces):
        if interface.name == ifname and interface.sandbox:
            return n
    raise CheckFailed(f"prevResult: has no interface {ifname} with a sandbox")


def _judge_link(mac: str, link: LinkInfo) -> None:
    if mac and mac.lower() != link.mac:
        raise CheckFailed(f"{link.name}: expected MAC {mac}, found {link.mac}")
    if not link.up:
        raise CheckFailed(f"{link.name}: expected up, found down")


def _judge_route(expected: Route, routes: list[RouteInfo]) -> None:
    dst = ip_network(expected.dst, strict=False)
    for route in routes:
        same = ip_network(route.dst) == dst and expected.gw in ("", route.gw)
        if same and expected.table in (None, route.table):
            return
    via = f" via {expected.gw}" if expected.gw else ""
    raise CheckFailed(f"routes: expected {expected.dst}{via}, found none")


def _words(items: object) -> str:
    return ", ".join(map(str, items)) or "none"  # type: ignore[call-overload]
