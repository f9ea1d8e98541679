"""TX checksum offload of a link, read and turned off, by SIOCETHTOOL (linux/ethtool.h).

With it, the sender leaves the checksum of a packet to the link, and may send packets larger than
the MTU, which the link cuts (TSO).
"""

from __future__ import annotations

import ctypes
import errno as errnos
import fcntl
import socket
import struct

from cni.kernel.netlink import refused

_SIOCETHTOOL = 0x8946
_GTXCSUM, _STXCSUM = 0x16, 0x17


def tx_checksum(name: str) -> bool:
    """Whether a link of the calling thread's namespace has TX checksum offload on.

    Raises NotFound, NetlinkError.
    """
    return bool(_ioctl(name, _GTXCSUM, 0, f"read TX checksum offload of {name}"))


def stop_tx_checksum(name: str) -> None:
    """Turn it off: packets then enter the link with their checksums, and no larger than its MTU.

    Raises NotFound, NetlinkError.
    """
    _ioctl(name, _STXCSUM, 0, f"turn TX checksum offload off on {name}")


def _ioctl(name: str, command: int, data: int, what: str) -> int:
    value = ctypes.create_string_buffer(struct.pack("=II", command, data))
    request = struct.pack("=16sQ16x", name.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
        try:
            fcntl.ioctl(s, _SIOCETHTOOL, request)
        except OSError as error:
            raise refused(error.errno or errnos.EIO, what) from error
    answer: int = struct.unpack_from("=II", value.raw)[1]
    return answer
