"""What a VMM needs to know of one NIC; `cni.vmm.formats` writes it in each VMM's format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cni.spec import result as results
from cni.spec.routing import onlink, resolved
from cni.spec.types import IP, Result, Route


@dataclass(frozen=True)
class Device:
    """One NIC of a guest; its `kind` says what stands behind it.

    tap        the tap of that name in the namespace `netns` (a path; "" is vmlinkd's own)
    macvtap    the device node `path`
    vhostuser  the socket `path`, on which the VMM listens; it shares all of the guest's memory

    `mac` and `mtu` (bytes) are the guest's, `queues` counts pairs. Without `offload` the guest must
    compute its checksums itself, because the switch passes them on unfinished.

    The rest is for a guest that is configured from outside: `ifname` is the pod's interface,
    `addresses` are CIDRs, `routes` have their gateways, and those without one come first;
    `neighbours` are pairs of address and MAC that the guest need not ask for.
    """

    id: str
    kind: str
    mac: str
    mtu: int
    queues: int
    netns: str = ""
    tap: str = ""
    path: str = ""
    offload: bool = True
    ifname: str = ""
    addresses: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[tuple[str, str], ...] = ()
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Device:
        """Read what `to_json` returned; routes of format 1 are pairs of destination and gateway."""
        routes = (Route(**r) if isinstance(r, dict) else Route(*r) for r in data.get("routes", ()))
        neighbours = ((ip, mac) for ip, mac in data.get("neighbours", ()))
        texts = {key: tuple(data.get(key, ())) for key in ("addresses", "nameservers", "search")}
        return Device(**{**data, **texts, "routes": tuple(routes), "neighbours": tuple(neighbours)})

    def to_json(self) -> dict[str, Any]:
        """Return the fields; of a route those that it has, as in a CNI result of 1.1.0."""
        return {**vars(self), "routes": [results.dump_route(route) for route in self.routes]}

    def is_onlink(self, route: Route) -> bool:
        """Return whether the guest must be told that the route's gateway is on the link."""
        return route in onlink(self.routes, self.addresses)


def promised(
    device: Device,
    ifname: str,
    result: Result,
    ips: Iterable[IP],
    neighbours: Iterable[tuple[str, str]] = (),
) -> Device:
    """The device with the addresses, routes and DNS that the CNI result promises the pod.

    `ips` are those of the pod's interface. A route without a gateway gets the first of its family.
    """
    domain = result.dns.get("domain")
    return replace(
        device,
        ifname=ifname,
        addresses=tuple(ip.address for ip in ips),
        routes=resolved(result.routes, result.ips),
        neighbours=tuple((ip, mac) for ip, mac in neighbours),
        nameservers=tuple(result.dns.get("nameservers") or ()),
        # The domain is a search list of one, and a search list comes before it (resolv.conf(5)).
        search=tuple(result.dns.get("search") or ([domain] if domain else ())),
    )
