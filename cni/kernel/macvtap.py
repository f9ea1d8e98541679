"""The character devices of macvtaps: their nodes in /dev made, given away, removed, opened.

The kernel names such a device tap<ifindex>, whatever namespace its link is in. Where /dev is a
devtmpfs it makes and removes the node as well; elsewhere, as in a container, nobody else does.
Sources: drivers/net/macvtap.c, drivers/net/tap.c, drivers/base/devtmpfs.c.
"""

from __future__ import annotations

import ctypes
import errno as errnos
import fcntl
import os
import stat
from contextlib import suppress

from cni.kernel.netlink import refused
from cni.kernel.netns import libc
from cni.kernel.tuntap import IFREQ, TUNSETIFF, tap_flags

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same on every architecture
_CLOEXEC, _CMD_CREATE = 1, 6


def node_path(index: int) -> str:
    return f"/dev/tap{index}"


def device_number(ifname: str, index: int) -> int:
    """As st_rdev has it, of a macvtap in the calling thread's namespace."""
    what = f"find the device of macvtap {ifname}"
    try:
        mount = _sysfs()
        try:
            name = f"class/net/{ifname}/macvtap/tap{index}/dev"
            with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=mount)) as f:
                major, minor = f.read().split(":")
        finally:
            os.close(mount)
    except OSError as e:
        raise refused(e.errno or errnos.EIO, what) from e
    return os.makedev(int(major), int(minor))


def _sysfs() -> int:
    """A descriptor of a sysfs that shows the thread's namespace and is mounted nowhere."""
    context = _syscall(_FSOPEN, b"sysfs", _CLOEXEC)
    try:
        _syscall(_FSCONFIG, context, _CMD_CREATE, None, None, 0)
        return _syscall(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)


def _syscall(*arguments: object) -> int:
    result: int = libc.syscall(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "sysfs")
    return result


def claim(index: int, number: int, owner: int | None, group: int | None) -> bool:
    """Have the device `number` at /dev/tap<index>, for its owner (None: root) and, if it is not
    None, a group. True if the node had to be made, and so has to be removed.

    Raises Exists if the node is of a macvtap with the same ifindex in another namespace.
    """
    path, what = node_path(index), f"make {node_path(index)}"
    discard(index)
    made = False
    try:
        with suppress(FileExistsError):
            os.mknod(path, stat.S_IFCHR | 0o600, number)
            made = True
        if _number(path) != number:
            raise refused(errnos.EEXIST, what)
        os.chown(path, owner or 0, group or 0)
        os.chmod(path, _mode(group))
    except OSError as e:
        if made:
            remove(index)
        raise refused(e.errno or errnos.EIO, what) from e
    return made


def _mode(group: int | None) -> int:
    return 0o600 if group is None else 0o660


def is_claimed(index: int, number: int, owner: int | None, group: int | None) -> bool:
    """Whether all that `claim` did is as it was."""
    try:
        status = os.lstat(node_path(index))
    except FileNotFoundError:
        return False
    found = (status.st_rdev, status.st_uid, status.st_gid, status.st_mode)
    return found == (number, owner or 0, group or 0, stat.S_IFCHR | _mode(group))


def remove(index: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(node_path(index))


def discard(index: int) -> None:
    """Remove the node of a macvtap that is gone: the kernel gives its number to the next one,
    whose frames it would open."""
    number = _number(node_path(index))
    if number and not _is_alive(number, index):
        remove(index)


def _number(path: str) -> int:
    """0 if there is no character device."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return 0
    return status.st_rdev if stat.S_ISCHR(status.st_mode) else 0


def _is_alive(number: int, index: int) -> bool:
    try:
        # The link leads into a namespace's own part of sysfs, but where to is told to everybody.
        device = os.readlink(f"/sys/dev/char/{os.major(number)}:{os.minor(number)}")
    except FileNotFoundError:
        return False
    return "/macvtap/" not in device or device.endswith(f"/tap{index}")


def open_macvtap(path: str, queues: int = 1) -> list[int]:
    """One close-on-exec descriptor with vnet_hdr for each queue; the caller closes them.

    Unlike a tap's, each open adds a queue. Raises NotFound if the macvtap is gone.
    """
    fds: list[int] = []
    try:
        for _ in range(queues):
            fds.append(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
            fcntl.ioctl(fds[-1], TUNSETIFF, IFREQ.pack(b"", tap_flags(queues)))
    except OSError as error:
        for fd in fds:
            os.close(fd)
        raise refused(error.errno or errnos.EIO, f"open {path}") from error
    return fds
