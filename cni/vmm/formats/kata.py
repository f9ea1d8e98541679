"""Kata Containers' runtime in Rust: the JSON file of a directly attachable network (DAN).

Source: kata-containers, src/runtime-rs/crates/resource/src/network/dan.rs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cni.errors import BadDevice
from cni.kernel.route_encode import RTNH_F_ONLINK
from cni.kernel.rtnl_encode import NUD_PERMANENT
from cni.spec.routing import DEFAULTS, SCOPE_LINK, best
from cni.spec.types import Route
from cni.vmm.device import Device


def dan(entries: Sequence[dict[str, Any]], netns: str | None = None) -> dict[str, Any]:
    """The file of a sandbox; the runtime opens its devices in the namespace `netns`.

    None is the runtime's own, where taps are: in the pod's, a VM from a template would look for
    them in vain.
    """
    return {"netns": netns, "devices": list(entries)}


def entry(device: Device) -> dict[str, Any]:
    """The entry of one NIC; `queue_num` counts pairs. Raises BadDevice."""
    return {
        "name": device.ifname,
        "guest_mac": device.mac,
        "device": {**_device(device), "queue_num": device.queues, "queue_size": 0},
        "network_info": {
            "interface": {
                "ip_addresses": list(device.addresses),
                "mtu": device.mtu,
                "ntype": "tuntap",
                "flags": 0,
            },
            "routes": [_route(device, route) for route in best(device.routes)],
            "neighbors": [_neighbour(ip, mac) for ip, mac in device.neighbours],
        },
    }


def _device(device: Device) -> dict[str, Any]:
    if device.kind == "vhostuser":
        return {"type": "vhost-user", "path": device.path}
    if device.kind == "macvtap":
        raise BadDevice(f"{device.id}: Kata's DAN file has no macvtap; use mode tap or vhostuser")
    if device.netns:
        raise BadDevice(
            f"{device.id}: Kata opens the tap of a DAN file in the host's namespace, and this one "
            "is in the pod's; use mode tap or vhostuser"
        )
    return {"type": "host-tap", "tap_name": device.tap}


def _route(device: Device, route: Route) -> dict[str, Any]:
    # The agent in the guest takes a route without a destination for the default route. It knows
    # neither table nor metric, and each route replaces the one to the same destination before.
    dest = "" if route.dst in DEFAULTS.values() and route.gw else route.dst
    scope = (0 if route.gw else SCOPE_LINK) if route.scope is None else route.scope
    flags = RTNH_F_ONLINK if device.is_onlink(route) else 0
    fields = {"scope": scope, "flags": flags, "mtu": route.mtu}
    return {"dest": dest, "gateway": route.gw, "source": "", **fields}


def _neighbour(ip: str, mac: str) -> dict[str, Any]:
    whole = f"{ip}/{128 if ':' in ip else 32}"
    state = {"state": NUD_PERMANENT, "flags": 0}
    return {"ip_address": whole, "hardware_addr": mac, **state}
