"""Cloud Hypervisor: the body of PUT /api/v1/vm.add-net.

The VMM reads a tap's MTU by the name of the tap, also when it gets descriptors, so it must run in
the tap's namespace. Source: cloud-hypervisor.yaml (OpenAPI), NetConfig.
"""

from __future__ import annotations

from typing import Any

from cni.errors import BadDevice
from cni.vmm.device import Device


def by_name(device: Device) -> dict[str, Any]:
    """The body for a VMM that opens the tap itself. Raises BadDevice for a macvtap."""
    if device.kind == "macvtap":
        raise BadDevice(
            f"{device.id}: Cloud Hypervisor opens no macvtap by its name; give it the descriptors "
            "by vmlinkctl plug --api-socket"
        )
    named = {"tap": device.tap} if device.kind == "tap" else {}
    return by_descriptors(device) | named


def by_descriptors(device: Device) -> dict[str, Any]:
    """The body for a request that carries a descriptor for each queue pair, and for vhost-user."""
    body: dict[str, Any] = {"id": device.id, "mac": device.mac, "num_queues": 2 * device.queues}
    if device.kind == "vhostuser":
        body |= {"mtu": device.mtu, "vhost_user": True, "vhost_socket": device.path}
        body["vhost_mode"] = "Server"
    if not device.offload:
        body |= dict.fromkeys(("offload_tso", "offload_ufo", "offload_csum"), False)
    return body
