"""What a VMM needs to know of one NIC; `cni.vmm.formats` writes it in each VMM's format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cni.spec.types import IP, Result, family_of, gateways_by_family


@dataclass(frozen=True)
class Device:
    """One NIC of a guest; its `kind` says what stands behind it.

    tap        the tap of that name in the namespace `netns` (a path; "" is vmlinkd's own)
    macvtap    the device node `path`
    vhostuser  the socket `path`, on which the VMM listens; it shares all of the guest's memory

    `mac` and `mtu` (bytes) are the guest's, `queues` counts pairs. Without `offload` the guest must
    compute its checksums itself, because the switch passes them on unfinished.

    The rest is for a guest that is configured from outside: `ifname` is the pod's interface,
    `addresses` are CIDRs, `routes` pairs of destination and gateway, `neighbours` pairs of address
    and MAC that the guest need not ask for.
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
    routes: tuple[tuple[str, str], ...] = ()
    neighbours: tuple[tuple[str, str], ...] = ()
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Device:
        """Read a device from a record, where it is `vars(device)` as JSON."""
        pairs = {
            key: tuple((first, second) for first, second in data.get(key, ()))
            for key in ("routes", "neighbours")
        }
        texts = {key: tuple(data.get(key, ())) for key in ("addresses", "nameservers", "search")}
        return Device(**{**data, **pairs, **texts})


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
    gateways = gateways_by_family(result.ips)
    return replace(
        device,
        ifname=ifname,
        addresses=tuple(ip.address for ip in ips),
        routes=tuple((r.dst, r.gw or gateways.get(family_of(r.dst), "")) for r in result.routes),
        neighbours=tuple((ip, mac) for ip, mac in neighbours),
        nameservers=tuple(result.dns.get("nameservers") or ()),
        search=tuple(result.dns.get("search") or ()),
    )
