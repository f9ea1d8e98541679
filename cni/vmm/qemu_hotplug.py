"""A NIC into a running QEMU, and out of it.

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
    """Plug it in by the monitor at `path`. Raises VmmRefused, or what opening raises; what was
    done is undone."""
    fds, vhost_fds = descriptors.opened(device)
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
    """Ask the guest for it, wait until it has let go, and take the rest away.

    Raises VmmRefused, also when nothing of it is there.
    """
    nic = qemu.nic_id(device)
    with Qmp(path, seconds) as qmp:
        absent = qmp.attempt({"execute": "device_del", "arguments": {"id": nic}})
        if absent is None:
            what = f"the guest to let go of {nic}; it has it still"
            if qmp.wait((_DELETED, _KEPT), nic, what) == _KEPT:
                raise VmmRefused(f"the guest does not let go of {nic}")
        elif not isinstance(absent, NoDevice):
            raise absent
        error = qmp.attempt({"execute": "netdev_del", "arguments": {"id": device.id}})
        if error and (absent or not isinstance(error, NoDevice)):
            raise error
        if device.kind == "vhostuser":
            # QEMU has removed it with the netdev, unless there was none.
            chardev = {"id": qemu.chardev_id(device)}
            qmp.attempt({"execute": "chardev-remove", "arguments": chardev})


def _require_shared_memory(qmp: Qmp, device: Device) -> None:
    backends = qmp.execute({"execute": "query-memdev"})
    if not any(backend.get("share") for backend in backends):
        raise VmmRefused(
            f"{device.id} is vhost-user, and the guest's memory must be shared: {SHARED}"
        )
