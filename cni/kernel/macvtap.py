"""The character devices of macvtaps: make their nodes in /dev, hand them over, open them.

The kernel names such a device tap<ifindex>, whatever namespace its link is in. On a devtmpfs it
makes and removes the node itself; where /dev is anything else, as in a container, vmlink does.
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
    """The device node of the macvtap with the ifindex `index`."""
    return f"/dev/tap{index}"


def device_number(ifname: str, index: int) -> int:
    """The device number (st_rdev) of a macvtap in the calling thread's namespace.

    Raises NotFound, NetlinkError.
    """
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
    """A descriptor of a sysfs that shows the thread's namespace, and is mounted nowhere."""
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
    """Give the node of the device `number` to `owner` (a uid; None is root) and `group` (a gid).

    Returns True if the node had to be made, so that somebody must remove it. Raises Exists if the
    node belongs to a macvtap with the same ifindex in another namespace, NetlinkError.
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
    """Whether the node is still as `claim` left it."""
    try:
        status = os.lstat(node_path(index))
    except FileNotFoundError:
        return False
    actual = (status.st_rdev, status.st_uid, status.st_gid, status.st_mode)
    return actual == (number, owner or 0, group or 0, stat.S_IFCHR | _mode(group))


def remove(index: int) -> None:
    """Remove the node; none is success. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(node_path(index))


def discard(index: int) -> None:
    """Remove the node if its macvtap is gone.

    The kernel gives the device number to the next macvtap, whose frames the node would open. Raises
    OSError.
    """
    number = _number(node_path(index))
    if number and not _is_alive(number, index):
        remove(index)


def _number(path: str) -> int:
    """The device number of a node; 0 if there is no character device."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return 0
    return status.st_rdev if stat.S_ISCHR(status.st_mode) else 0


def _is_alive(number: int, index: int) -> bool:
    try:
        # The link's target is in another namespace's part of sysfs, but its text can be read.
        device = os.readlink(f"/sys/dev/char/{os.major(number)}:{os.minor(number)}")
    except FileNotFoundError:
        return False
    return "/macvtap/" not in device or device.endswith(f"/tap{index}")


def open_macvtap(path: str, queues: int = 1) -> list[int]:
    """Open a descriptor with vnet_hdr for each queue, close-on-exec; the caller closes them.

    Each open of the node adds a queue. Raises NotFound if the macvtap is gone, NetlinkError.
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
