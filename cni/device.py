"""What a VMM needs to know of one NIC, and the dialects in which VMMs want to hear it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One NIC of a guest, backed by the tap `tap` in the namespace `netns` (a path).

    `mac` and `mtu` (bytes) are the guest's; `queues` counts pairs; `addresses` are CIDRs and
    `routes` (destination, gateway) pairs for a guest that is configured from outside.
    """

    id: str
    kind: str
    netns: str
    tap: str
    mac: str
    mtu: int
    queues: int
    addresses: tuple[str, ...] = ()
    routes: tuple[tuple[str, str], ...] = ()


def qemu(device: Device, fds: Sequence[int], vhost_fds: Sequence[int] = ()) -> list[str]:
    """Cold-plug arguments of QEMU for a tap whose queues are open as `fds`.

    Source: qemu(1), -netdev tap and -device virtio-net-pci; `vectors` is two for each pair and
    two for configuration and control.
    """
    netdev = f"tap,id={device.id},{_fds('fd', fds)}"
    if vhost_fds:
        netdev += f",vhost=on,{_fds('vhostfd', vhost_fds)}"
    nic = f"virtio-net-pci,netdev={device.id},mac={device.mac},host_mtu={device.mtu}"
    if device.queues > 1:
        nic += f",mq=on,vectors={2 * device.queues + 2}"
    return ["-netdev", netdev, "-device", nic]


def _fds(name: str, fds: Sequence[int]) -> str:
    if len(fds) == 1:
        return f"{name}={fds[0]}"
    return f"{name}s=" + ":".join(map(str, fds))
