"""CHECK: is the pod's interface as prevResult says? Source: CNI specification, section "CHECK"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_interface, ip_network
from typing import Any

from cni.errors import BadConfig, CheckFailed
from cni.kernel.netlink import Netlink, RouteInfo
from cni.kernel.rtnl_decode import LinkInfo
from cni.modes.steps.links import IN_POD, expect_link
from cni.spec import result as results
from cni.spec.types import Result, Route


def check_namespace(expected: Result, ifname: str, netlink: Netlink, chained: bool) -> None:
    """Compare the pod's namespace, whose `netlink` it is. Raises CheckFailed.

    What others added is no difference: plugins later in the chain may have their reasons. Where
    vmlink is `chained`, the plugin before it may have left the interface out of its result.
    """
    position = _position(expected, ifname, chained)
    link = expect_link(netlink, ifname, IN_POD)
    _check_link(_mac(expected, position), link)
    present = {ip_interface(a) for a in netlink.addresses(link.index)}
    _check_addresses(expected, position, ifname, present)
    if expected.routes:
        routes = netlink.routes()
        for route in expected.routes:
            _check_route(route, routes)


def check_result(expected: Result, ifname: str, of_add: Mapping[str, Any]) -> None:
    """Compare ADD's result, where the interface is the guest's alone. Raises CheckFailed."""
    position = _position(expected, ifname, chained=False)
    result = results.load(of_add)
    ours = next(i for i in result.interfaces if i.name == ifname)
    mac = _mac(expected, position)
    if mac not in ("", ours.mac):
        raise CheckFailed(f"{ifname}: expected MAC {mac}, found {ours.mac}")
    present = {ip_interface(ip.address) for ip in result.ips}
    _check_addresses(expected, position, ifname, present)


def _position(expected: Result, ifname: str, chained: bool) -> int | None:
    try:
        position = expected.position_of(ifname)
    except BadConfig as e:
        raise CheckFailed(e.msg) from e
    if position is None and not chained:
        raise CheckFailed(f"prevResult: expected interface {ifname} with a sandbox, found none")
    return position


def _mac(expected: Result, position: int | None) -> str:
    """The MAC in lower case; "" where the result has none, since it is optional."""
    return "" if position is None else expected.interfaces[position].mac.lower()


def _check_addresses(
    expected: Result, position: int | None, ifname: str, present: Iterable[Any]
) -> None:
    for ip in expected.ips_of(position):
        if ip_interface(ip.address) not in present:
            shown = ", ".join(map(str, present)) or "none"
            raise CheckFailed(f"{ifname}: expected address {ip.address}, found {shown}")


def _check_link(mac: str, link: LinkInfo) -> None:
    if mac not in ("", link.mac):
        raise CheckFailed(f"{link.name}: expected MAC {mac}, found {link.mac}")
    if not link.up:
        raise CheckFailed(f"{link.name}: expected up, found down")


def _check_route(expected: Route, routes: list[RouteInfo]) -> None:
    dst = ip_network(expected.dst, strict=False)
    for route in routes:
        same = ip_network(route.dst) == dst and expected.gw in ("", route.gw)
        if same and expected.table in (None, route.table):
            return
    via = f" via {expected.gw}" if expected.gw else ""
    raise CheckFailed(f"routes: expected {expected.dst}{via}, found none")
