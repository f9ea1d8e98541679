"""The formats in which VMMs and guests take the description of their NICs. Pure.

Each is a function of the devices, and of whether the kernel has vhost-net. It raises BadDevice for
a NIC that its VMM or guest cannot have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from cni.vmm.device import Device
from cni.vmm.formats import cloud_hypervisor, firecracker, guest, kata, libvirt, qemu

Format = Callable[[Sequence[Device], bool], str]


def _each(one: Callable[[Device], object]) -> Format:
    """A format with one JSON object a line for each NIC."""
    return lambda devices, vhost: "\n".join(json.dumps(one(d)) for d in devices)


def _json(devices: Sequence[Device], vhost: bool) -> str:
    return json.dumps([d.to_json() for d in devices], indent=2)


def _libvirt(devices: Sequence[Device], vhost: bool) -> str:
    return "\n".join(libvirt.interface(d) for d in devices)


def _kata_dan(devices: Sequence[Device], vhost: bool) -> str:
    return json.dumps(kata.dan([kata.entry(d) for d in devices]), indent=2)


def _cloud_init(devices: Sequence[Device], vhost: bool) -> str:
    return guest.cloud_init(devices)


def _kernel_ip(devices: Sequence[Device], vhost: bool) -> str:
    return guest.kernel_ip(devices)


# By the name that `vmlinkctl device --format` takes.
FORMATS: dict[str, Format] = {
    "json": _json,
    "qemu": qemu.cold,
    "qmp": qemu.hot,
    "cloud-hypervisor": _each(cloud_hypervisor.by_name),
    "firecracker": _each(firecracker.network_interface),
    "libvirt": _libvirt,
    "kata-dan": _kata_dan,
    "cloud-init": _cloud_init,
    "kernel-ip": _kernel_ip,
}
