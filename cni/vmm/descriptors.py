"""The descriptors by which a VMM gets a NIC: those of the tap, and those of vhost-net.

Sources: Documentation/networking/tuntap.rst, qemu(1) -netdev tap (fds, vhostfds).
"""

from __future__ import annotations

import errno as errnos
import fcntl
import os

from cni.kernel import macvtap, tuntap
from cni.kernel.netlink import refused
from cni.kernel.netns import Namespace
from cni.vmm.device import Device

VHOST_NET = "/dev/vhost-net"


def have_vhost() -> bool:
    """Whether vhost-net can be had, which moves a guest's packets without the VMM."""
    return not vhost_refusal()


def vhost_refusal() -> str:
    """What the kernel says to an open of vhost-net's device, "" if it opens.

    The open loads the module. A node without a driver is there as well, made when systemd starts.
    """
    try:
        os.close(_open_vhost())
    except OSError as e:
        return e.strerror or str(e)
    return ""


def open_queues(device: Device) -> tuple[list[int], list[int]]:
    """Open a NIC: the tap's descriptors and vhost-net's, one for each queue pair.

    They are close-on-exec, and the caller closes them. The second list is empty where vhost-net
    cannot be had; both are for vhost-user, whose socket the VMM makes itself. Raises NotFound,
    Busy (another VMM has it), BadEnvironment (its namespace is gone), NetlinkError.
    """
    if device.kind == "vhostuser":
        return [], []
    fds = [_lowest(fd) for fd in _open_tap(device)]
    vhost_fds: list[int] = []
    try:
        for _ in fds if have_vhost() else ():
            vhost_fds.append(_open_vhost())
    except OSError as e:
        close(fds + vhost_fds)
        raise refused(e.errno or errnos.EIO, f"open {VHOST_NET}") from e
    return fds, vhost_fds


def close(fds: list[int]) -> None:
    """Close descriptors that `open_queues` has returned."""
    for fd in fds:
        os.close(fd)


def _open_vhost() -> int:
    return os.open(VHOST_NET, os.O_RDWR | os.O_CLOEXEC)


def _lowest(fd: int) -> int:
    """Move a descriptor to the lowest free number from 3 up, unless its own is lower.

    Those of namespaces were open before it, and `cni.vmm.formats.qemu.cold` cannot know of them.
    """
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(max(fd, moved))
    return min(fd, moved)


def _open_tap(device: Device) -> list[int]:
    if device.kind == "macvtap":
        return macvtap.open_macvtap(device.path, device.queues)
    if not device.netns:
        return tuntap.open_tap(device.tap, device.queues)
    with Namespace.open(device.netns) as namespace, namespace.entered():
        return tuntap.open_tap(device.tap, device.queues)
