"""Persistent taps, by the ioctls of /dev/net/tun (linux/if_tun.h), in the thread's namespace."""

from __future__ import annotations

import errno as errnos
import fcntl
import os
import socket
import struct

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
_AS_MADE = {
    TUNSETSNDBUF: 2**31 - 1,
    TUNSETVNETHDRSZ: 10,  # sizeof(struct virtio_net_hdr)
    TUNSETVNETLE: 0,
    TUNSETVNETBE: 0,
    TUNSETSTEERINGEBPF: -1,
    TUNSETFILTEREBPF: -1,
}


def tap_flags(queues: int) -> int:
    return IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if queues > 1 else 0)


def create_tap(
    name: str, *, queues: int = 1, owner: int | None = None, group: int | None = None
) -> int:
    """Returns the ifindex of a new tap with vnet_hdr that stays when nobody has it open.

    `owner` (uid) and `group` (gid) may open it without CAP_NET_ADMIN; a tap without both is for
    whoever can open /dev/net/tun. Raises Exists if the name is taken.
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
        return socket.if_nametoindex(name)
    except OSError as error:
        raise _taken_or_refused(error, name, what) from error
    finally:
        os.close(fd)


def open_tap(name: str, queues: int = 1, most: int | None = None) -> list[int]:
    """One close-on-exec descriptor for each queue of a tap that exists, or for `most` of them; the
    caller closes them.

    Raises NotFound if there is no such tap, Busy if all of its queues are open.
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
    """Take back what the one who had the tap open may have set in it, which outlives him.

    Source: __tun_chr_ioctl in drivers/net/tun.c; the owner, the group, the MAC address and
    TUNSETPERSIST, which netlink tells, are left to the caller. Raises NotFound, Busy.
    """
    (fd,) = open_tap(name, queues, most=1)
    what = f"reset tap {name}"
    try:
        fcntl.ioctl(fd, TUNSETOFFLOAD, 0)
        fcntl.ioctl(fd, TUNDETACHFILTER, bytes(16))
        fcntl.ioctl(fd, TUNSETTXFILTER, struct.pack("=HH", 0, 0))
        for request, value in _AS_MADE.items():
            try:
                fcntl.ioctl(fd, request, struct.pack("=i", value))
            except OSError as error:
                if (request, error.errno) != (TUNSETVNETBE, errnos.EINVAL):  # few kernels have it
                    raise
    except OSError as error:
        raise refused(error.errno or errnos.EIO, what) from error
    finally:
        os.close(fd)


def _open(what: str) -> int:
    try:
        return os.open(TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NetlinkError(error.errno or errnos.EIO, what, TUN) from error


def _require_persistent(fd: int, what: str) -> None:
    # TUNSETIFF makes the tap that it does not find; that one goes with the descriptor.
    flags = IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ.size)))[1]
    if not flags & IFF_PERSIST:
        raise refused(errnos.ENODEV, what)


def _taken_or_refused(error: OSError, name: str, what: str) -> NetlinkError:
    # EBUSY for a tap of that name, EINVAL for any other link and for much else.
    number = error.errno or errnos.EIO
    if number == errnos.EINVAL:
        try:
            socket.if_nametoindex(name)
            number = errnos.EBUSY
        except OSError:
            pass
    return refused(errnos.EEXIST if number == errnos.EBUSY else number, what)
