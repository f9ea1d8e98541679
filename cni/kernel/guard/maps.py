"""eBPF maps by bpf(2). All raise NetlinkError. Source: union bpf_attr in linux/bpf.h."""

from __future__ import annotations

import ctypes
import os
import struct

from cni.kernel.bpf import read_info, syscall
from cni.kernel.guard.elf import MapDefinition
from cni.kernel.netlink import NotFound

_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY = range(5)
_FD_BY_ID = 14
_POSSIBLE = "/sys/devices/system/cpu/possible"


def create(name: str, made: MapDefinition) -> int:
    """Make a map; the caller closes the descriptor."""
    numbers = (made.type, made.key_size, made.value_size, made.max_entries, made.flags)
    attr = struct.pack("=5III16s", *numbers, 0, 0, name.encode())
    return syscall(_CREATE, bytearray(attr), f"make the map {name}")


def _element(fd: int, key: bytes, value: int, flags: int = 0) -> bytearray:
    # bytes are their own buffer: c_char_p points into it for as long as `key` lives.
    address = ctypes.cast(ctypes.c_char_p(key), ctypes.c_void_p).value or 0
    return bytearray(struct.pack("=IxxxxQQQ", fd, address, value, flags))


def update(fd: int, key: bytes, value: bytes) -> None:
    """Put an element, in the place of the one with the same key if there is one."""
    buffer = ctypes.create_string_buffer(value, len(value))
    attr = _element(fd, key, ctypes.addressof(buffer))
    syscall(_UPDATE, attr, f"update map {fd}")


def delete(fd: int, key: bytes) -> None:
    """Delete an element."""
    syscall(_DELETE, _element(fd, key, 0), f"delete from map {fd}")


def look(fd: int, key: bytes, size: int) -> bytes:
    """Return the value of an element, which has so many bytes."""
    buffer = ctypes.create_string_buffer(size)
    syscall(_LOOKUP, _element(fd, key, ctypes.addressof(buffer)), f"read map {fd}")
    return buffer.raw


def keys(fd: int, size: int) -> list[bytes]:
    """Return all keys, which have so many bytes."""
    found: list[bytes] = []
    buffer = ctypes.create_string_buffer(size)
    attr = bytearray(struct.pack("=IxxxxQQQ", fd, 0, ctypes.addressof(buffer), 0))
    while True:
        try:
            syscall(_NEXT_KEY, attr, f"list map {fd}")
        except NotFound:
            return found
        found.append(buffer.raw)
        attr = _element(fd, found[-1], ctypes.addressof(buffer))


def sums(fd: int, count: int) -> list[int]:
    """Return the elements of an array of numbers per CPU, each summed."""
    cpus = _possible_cpus()
    rows = (look(fd, struct.pack("=I", n), 8 * cpus) for n in range(count))
    return [sum(struct.unpack(f"={cpus}Q", row)) for row in rows]


def _possible_cpus() -> int:
    with open(_POSSIBLE) as f:
        return int(f.read().strip().replace(",", "-").split("-")[-1]) + 1


def by_id(number: int) -> int:
    """Open a map; the caller closes the descriptor."""
    return syscall(_FD_BY_ID, bytearray(struct.pack("=III", number, 0, 0)), f"open map {number}")


def of_program(fd: int) -> dict[str, int]:
    """Return new descriptors of a program's maps by their names; the caller closes them."""
    ids = (ctypes.c_uint32 * 16)()
    info = bytearray(128)
    struct.pack_into("=I", info, 52, len(ids))
    struct.pack_into("=Q", info, 56, ctypes.addressof(ids))
    read_info(fd, info, "read the maps of a program")
    opened: dict[str, int] = {}
    try:
        for number in ids[: struct.unpack_from("=I", info, 52)[0]]:
            one = by_id(number)
            opened[_name(one)] = one
    except BaseException:
        close(opened)
        raise
    return opened


def _name(fd: int) -> str:
    info = bytearray(88)
    read_info(fd, info, "read a map")
    return bytes(info[24:40]).rstrip(b"\0").decode()


def close(opened: dict[str, int]) -> None:
    """Close all descriptors."""
    for fd in opened.values():
        os.close(fd)
