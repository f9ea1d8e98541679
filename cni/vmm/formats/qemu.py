"""QEMU: arguments for its start, QMP commands for hot plug.

`vectors` is left out: since 6.1 virtio-net-pci computes it from its queues. Sources: qemu(1),
-netdev tap, -netdev vhost-user and -device virtio-net-pci; QEMU QMP Reference Manual, getfd,
chardev-add, netdev_add, device_add.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cni.vmm.device import Device

_OFFLOADS = "csum gso host_tso4 host_tso6 host_ecn host_ufo".split()
_NO_OFFLOAD = dict.fromkeys(_OFFLOADS, False)

Command = dict[str, Any]


def nic_id(device: Device) -> str:
    """The id of the virtio-net-pci; the netdev has the id of the device itself."""
    return device.id + "n"


def chardev_id(device: Device) -> str:
    """The id of the chardev for the socket of vhost-user."""
    return device.id + "c"


def arguments(device: Device, fds: Sequence[int], vhost_fds: Sequence[int] = ()) -> list[str]:
    """The command-line arguments for a NIC; `fds` and `vhost_fds` are inherited descriptors."""
    if device.kind == "vhostuser":
        path = device.path.replace(",", ",,")
        chardev = f"socket,id={chardev_id(device)},path={path},server=on,wait=off"
        backend = ["-chardev", chardev]
    else:
        backend = []
    netdev = _netdev(device, [str(fd) for fd in fds], [str(fd) for fd in vhost_fds])
    return [
        *backend,
        "-netdev",
        _option("type", netdev),
        "-device",
        _option("driver", _nic(device)),
    ]


def commands(device: Device, fds: Sequence[str], vhost_fds: Sequence[str] = ()) -> list[Command]:
    """The QMP commands for a NIC; `fds` and `vhost_fds` are the names of sent descriptors."""
    backend = []
    if device.kind == "vhostuser":
        address = {"type": "unix", "data": {"path": device.path}}
        data = {"addr": address, "server": True, "wait": False}
        socket = {"type": "socket", "data": data}
        backend = [_command("chardev-add", id=chardev_id(device), backend=socket)]
    return [
        *backend,
        _command("netdev_add", **_netdev(device, fds, vhost_fds)),
        _command("device_add", **_nic(device)),
    ]


def fd_names(device: Device, vhost: bool) -> tuple[list[str], list[str]]:
    """Names under which to send the tap's descriptors, and those of vhost-net."""
    pairs = range(device.queues if device.kind != "vhostuser" else 0)
    return [f"{device.id}-{n}" for n in pairs], [f"{device.id}-v{n}" for n in pairs if vhost]


def getfd(name: str) -> Command:
    """The command that a descriptor comes with, to have that name in QEMU."""
    return _command("getfd", fdname=name)


def closefd(name: str) -> Command:
    """The command that closes such a descriptor in QEMU."""
    return _command("closefd", fdname=name)


def inverse(command: Command) -> Command | None:
    """The command that undoes one of `commands`; None for device_add, after which none fails."""
    name = {"chardev-add": "chardev-remove", "netdev_add": "netdev_del"}.get(command["execute"])
    return _command(name, id=command["arguments"]["id"]) if name else None


def cold(devices: Sequence[Device], vhost: bool) -> str:
    """The arguments of all NICs, a line for each.

    The descriptors have the numbers that they would get from `vmlinkctl exec`, from 3 up.
    """
    free = itertools.count(3)
    lines = []
    for one in devices:
        fds, vhost_fds = ([next(free) for _ in names] for names in fd_names(one, vhost))
        lines.append(" ".join(arguments(one, fds, vhost_fds)))
    return "\n".join(lines)


def hot(devices: Sequence[Device], vhost: bool) -> str:
    """The QMP commands of all NICs, a line for each."""
    lines = []
    for one in devices:
        names = fd_names(one, vhost)
        lines += [getfd(name) for some in names for name in some]
        lines += commands(one, *names)
    return "\n".join(json.dumps(line) for line in lines)


def _netdev(device: Device, fds: Sequence[str], vhost_fds: Sequence[str]) -> dict[str, Any]:
    if device.kind == "vhostuser":
        named = {"type": "vhost-user", "id": device.id, "chardev": chardev_id(device)}
        return {**named, "queues": device.queues}
    netdev = {"type": "tap", "id": device.id, **_fds("fd", fds)}
    return netdev | ({"vhost": True, **_fds("vhostfd", vhost_fds)} if vhost_fds else {})


def _nic(device: Device) -> dict[str, Any]:
    return {
        "driver": "virtio-net-pci",
        "id": nic_id(device),
        "netdev": device.id,
        "mac": device.mac,
        "host_mtu": device.mtu,
        **({"mq": True} if device.queues > 1 else {}),
        **({} if device.offload else _NO_OFFLOAD),
    }


def _fds(name: str, fds: Sequence[str]) -> dict[str, str]:
    return {name: fds[0]} if len(fds) == 1 else {name + "s": ":".join(fds)}


def _option(first: str, values: Mapping[str, Any]) -> str:
    properties = [f"{k}={_property(v)}" for k, v in values.items() if k != first]
    return ",".join([values[first], *properties])


def _property(value: Any) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _command(name: str, **arguments: Any) -> Command:
    return {"execute": name, "arguments": arguments}
