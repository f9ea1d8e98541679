"""Hot plug of a NIC in QEMU, by its monitor.

Source: QEMU QMP Reference Manual, device_add, device_del, DEVICE_DELETED, query-memdev.
"""

from __future__ import annotations

from contextlib import ExitStack

from cni.errors import VmmRefused
from cni.vmm import descriptors
from cni.vmm.device import Device
from cni.vmm.formats import qemu
from cni.vmm.qmp import NoDevice, Qmp

SHARED = (
    "give QEMU -object memory-backend-memfd,id=mem,size=SIZE,share=on and -machine "
    "memory-backend=mem"
)
_DELETED, _KEPT = "DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"


def plug(path: str, device: Device, seconds: float) -> None:
    """Plug in a NIC by the monitor at `path`, within so many seconds.

    Raises VmmRefused, or as `descriptors.open_queues`; QEMU has nothing of the NIC then.
    """
    fds, vhost_fds = descriptors.open_queues(device)
    try:
        with Qmp(path, seconds) as qmp, ExitStack() as undo:
            if device.kind == "vhostuser":
                _require_shared_memory(qmp, device)
            names = qemu.fd_names(device, bool(vhost_fds))
            for name, fd in zip(names[0] + names[1], fds + vhost_fds, strict=True):
                qmp.execute(qemu.getfd(name), fd)
                undo.callback(qmp.attempt, qemu.closefd(name))
            for command in qemu.commands(device, *names):
                qmp.execute(command)
                if inverse := qemu.inverse(command):
                    undo.callback(qmp.attempt, inverse)
            undo.pop_all()
    finally:
        descriptors.close(fds + vhost_fds)


def unplug(path: str, device: Device, seconds: float) -> None:
    """Ask the guest to release a NIC, wait until it has, and remove the NIC's backend.

    Raises VmmRefused, also when QEMU has neither NIC nor backend.
    """
    nic = qemu.nic_id(device)
    with Qmp(path, seconds) as qmp:
        absent = qmp.attempt({"execute": "device_del", "arguments": {"id": nic}})
        if absent is None:
            what = f"the guest to let go of {nic}; try again, or shut the guest down"
            if qmp.wait((_DELETED, _KEPT), nic, what) == _KEPT:
                raise VmmRefused(f"the guest does not let go of {nic}; shut the guest down")
        elif not isinstance(absent, NoDevice):
            raise absent
        error = qmp.attempt({"execute": "netdev_del", "arguments": {"id": device.id}})
        if error and (absent or not isinstance(error, NoDevice)):
            raise error
        if device.kind == "vhostuser":
            # QEMU removes the chardev with the netdev; it is left where there was no netdev.
            chardev = {"id": qemu.chardev_id(device)}
            qmp.attempt({"execute": "chardev-remove", "arguments": chardev})


def _require_shared_memory(qmp: Qmp, device: Device) -> None:
    backends = qmp.execute({"execute": "query-memdev"})
    if not any(backend.get("share") for backend in backends):
        raise VmmRefused(
            f"{device.id} is vhost-user, and the guest's memory must be shared: {SHARED}"
        )
