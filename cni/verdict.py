"""CHECK: is the pod's interface as prevResult says? Source: CNI specification, section CHECK."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

from cni.errors import CheckFailed
from cni.netlink import Netlink, RouteInfo
from cni.rtdecode import LinkInfo
from cni.types import Result, Route


def judge(expected: Result, ifname: str, netlink: Netlink) -> None:
    """Raise CheckFailed for the first difference; `netlink` is the pod's.

    What others added is no difference: plugins later in the chain may have their reasons.
    """
    position = next(
        (n for n, i in enumerate(expected.interfaces) if i.name == ifname and i.sandbox), None
    )
    if position is None:
        raise CheckFailed(f"prevResult: has no interface {ifname} with a sandbox")
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
