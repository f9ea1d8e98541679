"""Whether a link's sender may leave checksums to be finished, by SIOCETHTOOL (linux/ethtool.h)."""

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
    """For a link of the thread's namespace. Raises NotFound."""
    return bool(_value(name, _GTXCSUM, 0))


def stop_tx_checksum(name: str) -> None:
    """From now on frames leave the link with their checksums, and unsegmented ones are cut."""
    _value(name, _STXCSUM, 0)


def _value(name: str, command: int, data: int) -> int:
    value = ctypes.create_string_buffer(struct.pack("=II", command, data))
    request = struct.pack("=16sQ16x", name.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
        try:
            fcntl.ioctl(s, _SIOCETHTOOL, request)
        except OSError as error:
            what = f"turn checksum offload off on {name}"
            raise refused(error.errno or errnos.EIO, what) from error
    found: int = struct.unpack_from("=II", value.raw)[1]
    return found
