"""Persistent taps in the calling thread's namespace, by the ioctls of /dev/net/tun.

Sources: Documentation/networking/tuntap.rst, linux/if_tun.h, drivers/net/tun.c.
"""

from __future__ import annotations

import errno as errnos
import fcntl
import os
import struct

from cni.errors import NotReady
from cni.kernel.link_index import index_here
from cni.kernel.netlink import NetlinkError, refused

TUN = "/dev/net/tun"
TUNSETIFF, TUNGETIFF = 0x400454CA, 0x800454D2
TUNSETPERSIST, TUNSETOWNER, TUNSETGROUP = 0x400454CB, 0x400454CC, 0x400454CE
TUNSETOFFLOAD, TUNSETTXFILTER, TUNSETSNDBUF = 0x400454D0, 0x400454D1, 0x400454D4
TUNDETACHFILTER, TUNSETVNETHDRSZ = 0x401054D6, 0x400454D8
TUNSETVNETLE, TUNSETVNETBE = 0x400454DC, 0x400454DE
TUNSETSTEERINGEBPF, TUNSETFILTEREBPF = 0x800454E0, 0x800454E1
IFF_TAP, IFF_MULTI_QUEUE, IFF_PERSIST = 0x0002, 0x0100, 0x0800
IFF_NO_PI, IFF_VNET_HDR, IFF_TUN_EXCL = 0x1000, 0x4000, 0x8000
IFREQ = struct.Struct("=16sH22x")
# What each setting is in a tap that has just been made.
_DEFAULTS = {
    TUNSETSNDBUF: 2**31 - 1,
    TUNSETVNETHDRSZ: 10,  # sizeof(struct virtio_net_hdr)
    TUNSETVNETLE: 0,
    TUNSETVNETBE: 0,
    TUNSETSTEERINGEBPF: -1,
    TUNSETFILTEREBPF: -1,
}


def require_tun() -> None:
    """Check that taps can be made here. Raises NotReady."""
    if not os.access(TUN, os.R_OK | os.W_OK):
        raise NotReady(f"{TUN} cannot be opened; load the kernel module tun")


def effective_owner(owner: int | None, group: int | None) -> int | None:
    """The uid to give a tap: root's where neither an owner nor a group is configured.

    The kernel lets everybody open a tap that has neither (tun_not_capable() in drivers/net/tun.c).
    """
    return 0 if owner is None and group is None else owner


def tap_flags(queues: int) -> int:
    """The flags for TUNSETIFF: a tap with vnet_hdr, with one queue pair or several."""
    return IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if queues > 1 else 0)


def create_tap(
    name: str, *, queues: int = 1, owner: int | None = None, group: int | None = None
) -> int:
    """Make a persistent tap with vnet_hdr; returns its ifindex.

    `owner` (a uid) and `group` (a gid) may open it without CAP_NET_ADMIN; with neither, everybody
    may, see `effective_owner`. Raises Exists if the name is taken, NetlinkError.
    """
    what = f"create tap {name}"
    fd = _open(what)
    try:
        fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(name.encode(), tap_flags(queues) | IFF_TUN_EXCL))
        if owner is not None:
            fcntl.ioctl(fd, TUNSETOWNER, owner)
        if group is not None:
            fcntl.ioctl(fd, TUNSETGROUP, group)
        fcntl.ioctl(fd, TUNSETPERSIST, 1)
        return _made(name)
    except OSError as error:
        raise _taken_or_refused(error, name, what) from error
    finally:
        os.close(fd)


def open_tap(name: str, queues: int = 1, most: int | None = None) -> list[int]:
    """Open a descriptor for each queue of an existing tap, close-on-exec; the caller closes them.

    `queues` is how many the tap was made for, `most` limits how many are opened. Raises NotFound if
    there is no such tap, Busy if another program has it open, NetlinkError.
    """
    what = f"open tap {name}"
    fds: list[int] = []
    try:
        for _ in range(queues if most is None else most):
            fds.append(_open(what))
            fcntl.ioctl(fds[-1], TUNSETIFF, IFREQ.pack(name.encode(), tap_flags(queues)))
            _require_persistent(fds[-1], what)
    except BaseException as error:
        for fd in fds:
            os.close(fd)
        if isinstance(error, OSError):
            raise refused(error.errno or errnos.EIO, what) from error
        raise
    return fds


def reset_tap(name: str, queues: int = 1) -> None:
    """Set a tap's offloads, filters and programs back to what a new tap has.

    They outlive the program that set them. Owner, group, persistence and MAC address are left to
    the caller, who reads and sets those by netlink. Raises NotFound, Busy, NetlinkError.

    Source: __tun_chr_ioctl() in drivers/net/tun.c.
    """
    (fd,) = open_tap(name, queues, most=1)
    what = f"reset tap {name}"
    try:
        fcntl.ioctl(fd, TUNSETOFFLOAD, 0)
        fcntl.ioctl(fd, TUNDETACHFILTER, bytes(16))
        fcntl.ioctl(fd, TUNSETTXFILTER, struct.pack("=HH", 0, 0))
        for request, value in _DEFAULTS.items():
            try:
                fcntl.ioctl(fd, request, struct.pack("=i", value))
            except OSError as error:
                # Most kernels are built without CONFIG_TUN_VNET_CROSS_LE.
                if (request, error.errno) != (TUNSETVNETBE, errnos.EINVAL):
                    raise
    except OSError as error:
        raise refused(error.errno or errnos.EIO, what) from error
    finally:
        os.close(fd)


def _made(name: str) -> int:
    index = index_here(name)
    if index is None:
        raise OSError(errnos.ENODEV, name)
    return index


def _open(what: str) -> int:
    try:
        return os.open(TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NetlinkError(error.errno or errnos.EIO, what, TUN) from error


def _require_persistent(fd: int, what: str) -> None:
    # Where there is no such tap TUNSETIFF makes one, which goes with the descriptor.
    flags = IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ.size)))[1]
    if not flags & IFF_PERSIST:
        raise refused(errnos.ENODEV, what)


def _taken_or_refused(error: OSError, name: str, what: str) -> NetlinkError:
    # EBUSY for a tap of that name, EINVAL for any other link and for much else.
    number = error.errno or errnos.EIO
    if number == errnos.EINVAL and index_here(name):
        number = errnos.EBUSY
    return refused(errnos.EEXIST if number == errnos.EBUSY else number, what)
