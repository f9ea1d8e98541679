"""What a VMM needs to know of one NIC. How each VMM wants to hear it is in `cni.vmm.formats`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cni.spec.types import IP, Result


@dataclass(frozen=True)
class Device:
    """One NIC of a guest.

    Of the kind `tap`, it is the tap of that name in the namespace `netns` (a path; "" is
    vmlinkd's own); `macvtap`: the device node `path`; `vhostuser`: the VMM listens on the socket
    `path` and shares all of the guest's memory. `mac` and `mtu` (bytes) are the guest's; `queues`
    counts pairs. Without `offload` the guest must finish its checksums itself: the switch passes
    them on as they are. The rest is for a guest that is configured from outside: `ifname` is the
    name that CNI promised, `addresses` are CIDRs, `routes` (destination, gateway) pairs,
    `neighbours` (address, MAC) pairs that are known beforehand.
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
        pairs = {
            key: tuple((first, second) for first, second in data.get(key, ()))
            for key in ("routes", "neighbours")
        }
        words = {key: tuple(data.get(key, ())) for key in ("addresses", "nameservers", "search")}
        return Device(**{**data, **pairs, **words})


def promised(
    device: Device,
    ifname: str,
    result: Result,
    ips: Iterable[IP],
    neighbours: Iterable[tuple[str, str]] = (),
) -> Device:
    """The device with what CNI's result promises; `ips` are those of the pod's interface."""
    gateways = {":" in ip.gateway: ip.gateway for ip in reversed(result.ips) if ip.gateway}
    return replace(
        device,
        ifname=ifname,
        addresses=tuple(ip.address for ip in ips),
        routes=tuple((r.dst, r.gw or gateways.get(":" in r.dst, "")) for r in result.routes),
        neighbours=tuple((ip, mac) for ip, mac in neighbours),
        nameservers=tuple(result.dns.get("nameservers") or ()),
        search=tuple(result.dns.get("search") or ()),
    )
