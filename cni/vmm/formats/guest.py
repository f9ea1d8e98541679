"""The guest's own configuration: cloud-init's network-config, the kernel's parameter ip=.

Sources: cloud-init, "Networking config Version 2"; Documentation/admin-guide/nfs/nfsroot.rst.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

import yaml

from cni.errors import BadDevice
from cni.spec.routing import DEFAULTS, best, in_main_table
from cni.spec.types import Route
from cni.vmm.device import Device


def cloud_init(devices: Sequence[Device]) -> str:
    """The file `network-config` for all NICs, YAML of version 2. Raises BadDevice."""
    ethernets = {one.ifname: _ethernet(one) for one in devices}
    config = {"version": 2, "ethernets": ethernets}
    text: str = yaml.safe_dump(config, sort_keys=False, default_flow_style=False)
    return text.rstrip()


def _ethernet(device: Device) -> dict[str, Any]:
    _require_addresses(device, "cloud-init", device.addresses)
    config: dict[str, Any] = {
        "match": {"macaddress": device.mac},
        "set-name": device.ifname,
        "mtu": device.mtu,
        "addresses": list(device.addresses),
    }
    routes = [_route(device, route) for route in in_main_table(device.routes)]
    default = next((r for r in routes if r == {"to": DEFAULTS[6], "via": r.get("via")}), None)
    if default:
        # Without netplan, cloud-init of Debian 12 (22.4) makes ::/64 of a route to ::/0.
        config["gateway6"] = default["via"]
        routes.remove(default)
    if routes:
        config["routes"] = routes
    resolver = {"addresses": list(device.nameservers), "search": list(device.search)}
    if filled := {key: value for key, value in resolver.items() if value}:
        config["nameservers"] = filled
    return config


def _route(device: Device, route: Route) -> dict[str, Any]:
    # cloud-init hands all keys to netplan. Where it renders for another program it drops most of
    # them, so nothing is said that would make a wrong route without its key, such as a table.
    fields = {
        "to": route.dst,
        "via": route.gw,
        "scope": "" if route.gw else "link",
        "on-link": device.is_onlink(route),
        "metric": route.priority,
        "mtu": route.mtu,
    }
    return {key: value for key, value in fields.items() if value}


def kernel_ip(devices: Sequence[Device]) -> str:
    """The parameter ip= for one NIC; it knows IPv4 alone. Raises BadDevice."""
    if len(devices) > 1:
        raise BadDevice(
            f"ip= is for one interface, and there are {len(devices)}; choose by --ifname"
        )
    (device,) = devices
    cidrs = [cidr for cidr in device.addresses if ":" not in cidr]
    _require_addresses(device, "ip=", cidrs)
    routes = [route for route in best(device.routes) if ":" not in route.dst]
    if len(cidrs) > 1 or any(route.dst != DEFAULTS[4] for route in routes):
        raise BadDevice(
            f"{device.id}: ip= knows one address and a default route; use cloud-init for more"
        )
    address = ipaddress.ip_interface(cidrs[0])
    if any(not route.gw or device.is_onlink(route) for route in routes):
        raise BadDevice(
            f"{device.id}: ip= takes a gateway in the address's own subnet; use cloud-init"
        )
    gateway = routes[0].gw if routes else ""
    servers = [server for server in device.nameservers if ":" not in server][:2]
    fields = [str(address.ip), "", gateway, str(address.netmask), "", device.ifname, "off"]
    return "ip=" + ":".join([*fields, *servers])


def _require_addresses(device: Device, method: str, addresses: Sequence[str]) -> None:
    if not addresses:
        raise BadDevice(
            f"{device.id}: {method} needs an address that it can set, and there is none; add ipam "
            "to the network, or let the guest use DHCP"
        )
