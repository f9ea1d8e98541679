"""The descriptors that a VMM is given for a NIC."""

from __future__ import annotations

import errno as errnos
import os

from cni.kernel import macvtap, tuntap
from cni.kernel.netlink import refused
from cni.kernel.netns import Namespace
from cni.vmm.device import Device

VHOST_NET = "/dev/vhost-net"


def have_vhost() -> bool:
    return os.path.exists(VHOST_NET)


def opened(device: Device) -> tuple[list[int], list[int]]:
    """Close-on-exec descriptors, one for each pair of queues: the tap's, and vhost-net's where the
    kernel has it. None for vhost-user, whose socket the VMM makes itself. The caller closes them.

    Raises NotFound, Busy (another VMM has it) or BadEnvironment (its namespace is gone).
    """
    if device.kind == "vhostuser":
        return [], []
    fds = _opened(device)
    vhost_fds: list[int] = []
    try:
        for _ in fds if have_vhost() else ():
            vhost_fds.append(os.open(VHOST_NET, os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        close(fds + vhost_fds)
        raise refused(e.errno or errnos.EIO, f"open {VHOST_NET}") from e
    return fds, vhost_fds


def close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _opened(device: Device) -> list[int]:
    if device.kind == "macvtap":
        return macvtap.open_macvtap(device.path, device.queues)
    if not device.netns:
        return tuntap.open_tap(device.tap, device.queues)
    with Namespace.open(device.netns) as namespace, namespace.entered():
        return tuntap.open_tap(device.tap, device.queues)
