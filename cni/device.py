"""What a VMM needs to know of one NIC, and the dialects in which VMMs want to hear it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_NO_OFFLOAD = ",".join(
    f"{name}=off" for name in "csum gso host_tso4 host_tso6 host_ecn host_ufo".split()
)


@dataclass(frozen=True)
class Device:
    """One NIC of a guest.

    Of the kind `tap`, it is the tap of that name in the namespace `netns` (a path; "" is
    vmlinkd's own); `macvtap`: the device node `path`; `vhostuser`: the VMM listens on the socket
    `path` and shares all of the guest's memory. `mac` and `mtu` (bytes) are the guest's; `queues`
    counts pairs. Without `offload` the guest must finish its checksums itself: the switch passes
    them on as they are. `addresses` are CIDRs and `routes` (destination, gateway) pairs for a
    guest that is configured from outside.
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
    addresses: tuple[str, ...] = ()
    routes: tuple[tuple[str, str], ...] = ()


def qemu(device: Device, fds: Sequence[int], vhost_fds: Sequence[int] = ()) -> list[str]:
    """Cold-plug arguments of QEMU; `fds` are the open queues of a tap.

    Source: qemu(1), -netdev tap, -netdev vhost-user and -device virtio-net-pci, which counts its
    `vectors` by itself since 6.1.
    """
    if device.kind == "vhostuser":
        path = device.path.replace(",", ",,")
        chardev = f"socket,id={device.id}c,path={path},server=on,wait=off"
        backend = ["-chardev", chardev]
        netdev = f"vhost-user,id={device.id},chardev={device.id}c,queues={device.queues}"
    else:
        backend = []
        netdev = f"tap,id={device.id},{_fds('fd', fds)}"
    if vhost_fds:
        netdev += f",vhost=on,{_fds('vhostfd', vhost_fds)}"
    nic = f"virtio-net-pci,netdev={device.id},mac={device.mac},host_mtu={device.mtu}"
    if device.queues > 1:
        nic += ",mq=on"
    if not device.offload:
        nic += f",{_NO_OFFLOAD}"
    return [*backend, "-netdev", netdev, "-device", nic]


def _fds(name: str, fds: Sequence[int]) -> str:
    if len(fds) == 1:
        return f"{name}={fds[0]}"
    return f"{name}s=" + ":".join(map(str, fds))
