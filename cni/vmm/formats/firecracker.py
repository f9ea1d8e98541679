"""Firecracker: the body of PUT /network-interfaces/ID, where ID is the body's `iface_id`.

Firecracker opens a tap by its name, in its own namespace, with one pair of queues. Source:
firecracker.yaml (Swagger), NetworkInterface.
"""

from __future__ import annotations

from cni.errors import BadDevice
from cni.vmm.device import Device


def network_interface(device: Device) -> dict[str, str]:
    """The body for a NIC. Raises BadDevice."""
    if reason := _refusal(device):
        raise BadDevice(f"{device.id}: Firecracker {reason}")
    return {"iface_id": device.id, "guest_mac": device.mac, "host_dev_name": device.tap}


def _refusal(device: Device) -> str:
    if device.kind == "vhostuser":
        return "has no vhost-user network; use mode tc or tap"
    if device.kind == "macvtap":
        return "opens a tap by its name, and a macvtap only has a device node; use mode tc or tap"
    if device.queues > 1:
        return f"opens one pair of queues, and the tap has {device.queues}; set queues to 1"
    if not device.offload:
        return (
            "cannot turn off its guest's checksum offload, and the switch would pass checksums on "
            "unfinished; use mode tc, or set userspace-tso-enable in Open vSwitch"
        )
    return ""
