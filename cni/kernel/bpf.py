"""Our two programs: what comes in on one link is redirected to another; what comes in is ignored.

Plain bpf(2) by ctypes; the layouts are those of union bpf_attr in linux/bpf.h. Attaching and
looking happen in the calling thread's network namespace.
"""

from __future__ import annotations

import ctypes
import errno as errnos
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from cni.kernel.netlink import NetlinkError, NotFound, refused
from cni.kernel.netns import libc

NAME, IGNORE = "vmlink_redir", "vmlink_ignore"
SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
PROG_LOAD, PROG_ATTACH, PROG_DETACH = 5, 8, 9
PROG_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD, PROG_QUERY = 13, 15, 16
SCHED_CLS, TCX_INGRESS = 3, 46
MOST_PROGRAMS = 64  # BPF_MPROG_MAX
INSTRUCTION = struct.Struct("=BBhi")
MOV_R0, MOV_R1, MOV_R2 = (0xB7, 0x00), (0xB7, 0x01), (0xB7, 0x02)
CALL, EXIT = (0x85, 0x00), (0x95, 0x00)
BPF_REDIRECT, BPF_F_INGRESS = 23, 1
BPF_SKB_CHANGE_TYPE, PACKET_OTHERHOST = 32, 3
TC_ACT_UNSPEC = -1
_KEPT = 32  # the largest ifindex whose program is kept loaded


@dataclass(frozen=True)
class Program:
    """A loaded program; `target` is where ours redirects to, 0 if the kernel would not tell."""

    id: int
    name: str
    target: int


def _bpf(command: int, attr: bytearray, what: str) -> int:
    number = SYSCALL.get(platform.machine())
    if number is None:
        raise refused(errnos.EOPNOTSUPP, what, f"bpf(2) on {platform.machine()} is not known here")
    buffer = (ctypes.c_char * len(attr)).from_buffer(attr)
    result: int = libc.syscall(number, command, buffer, len(attr))
    if result < 0:
        raise refused(ctypes.get_errno(), what)
    return result


def load_redirect(ifindex: int, *, into: bool = False) -> int:
    """A descriptor of the program that sends everything out of the link `ifindex` or, with `into`,
    lets it come in there; the caller closes it."""
    return load(
        NAME,
        (*MOV_R1, 0, ifindex),
        (*MOV_R2, 0, BPF_F_INGRESS if into else 0),
        (*CALL, 0, BPF_REDIRECT),
        (*EXIT, 0, 0),
    )


@cache
def ignore_program() -> int:
    """A descriptor, kept for good, of the program by which the namespace's own stack takes every
    frame for somebody else's, as if it came with promiscuous mode; others still get it."""
    return load(
        IGNORE,
        (*MOV_R2, 0, PACKET_OTHERHOST),
        (*CALL, 0, BPF_SKB_CHANGE_TYPE),
        (*MOV_R0, 0, TC_ACT_UNSPEC),
        (*EXIT, 0, 0),
    )


def load(name: str, *instructions: tuple[int, int, int, int]) -> int:
    """A descriptor of a classifier; `instructions` as INSTRUCTION packs them."""
    code = ctypes.create_string_buffer(b"".join(INSTRUCTION.pack(*i) for i in instructions))
    license_ = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQIIQII16s",
        SCHED_CLS,
        len(instructions),
        ctypes.addressof(code),
        ctypes.addressof(license_),
        *(0, 0, 0, 0, 0),
        name.encode(),
    )
    return _bpf(PROG_LOAD, bytearray(attr), f"load the program {name}")


@contextmanager
def redirect_program(ifindex: int) -> Iterator[int]:
    """A descriptor of that program. Those for small numbers are loaded once and kept: in a pod's
    namespace the links have the same few, and each of its frames looks the number up there."""
    if ifindex <= _KEPT:
        yield _kept_program(ifindex)
        return
    fd = load_redirect(ifindex)
    try:
        yield fd
    finally:
        os.close(fd)


@cache
def _kept_program(ifindex: int) -> int:
    return load_redirect(ifindex)


def attach_tcx(prog_fd: int, ifindex: int) -> None:
    """Behind what is attached to the ingress already. It stays when the descriptor is closed."""
    attr = struct.pack("=IIIIIIQ", ifindex, prog_fd, TCX_INGRESS, 0, 0, 0, 0)
    _bpf(PROG_ATTACH, bytearray(attr), f"attach the redirect to link {ifindex}")


def tcx_programs(ifindex: int) -> list[int]:
    """Ids of all tcx programs of the ingress, in their order."""
    ids = (ctypes.c_uint32 * MOST_PROGRAMS)()
    query = (ifindex, TCX_INGRESS, 0, 0, ctypes.addressof(ids), MOST_PROGRAMS)
    attr = bytearray(struct.pack("=IIIIQIIQQQQ", *query, 0, 0, 0, 0, 0))
    _bpf(PROG_QUERY, attr, f"list the tcx programs of link {ifindex}")
    count: int = struct.unpack_from("=I", attr, 24)[0]
    return list(ids[:count])


def program_fd(prog_id: int) -> int:
    attr = bytearray(struct.pack("=III", prog_id, 0, 0))
    return _bpf(PROG_GET_FD_BY_ID, attr, f"open bpf program {prog_id}")


def program(fd: int) -> Program:
    """struct bpf_prog_info, as far as it says whose the program is and where it leads."""
    code = ctypes.create_string_buffer(64)
    info = bytearray(128)
    struct.pack_into("=I", info, 20, 64)
    struct.pack_into("=Q", info, 32, ctypes.addressof(code))
    view = (ctypes.c_char * len(info)).from_buffer(info)
    attr = bytearray(struct.pack("=IIQ", fd, len(info), ctypes.addressof(view)))
    _bpf(OBJ_GET_INFO_BY_FD, attr, f"read bpf program {fd}")
    name = bytes(info[64:80]).rstrip(b"\0").decode("utf-8", "replace")
    number: int = struct.unpack_from("=I", info, 4)[0]
    first = INSTRUCTION.unpack_from(code.raw)
    # With bpf_jit_harden=2 the kernel shows blinded constants, in other instructions.
    target = first[3] if name == NAME and first[:2] == MOV_R1 else 0
    return Program(number, name, target)


def program_by_id(prog_id: int) -> Program | None:
    """None if it went away in the meantime."""
    try:
        fd = program_fd(prog_id)
    except NotFound:
        return None
    try:
        return program(fd)
    finally:
        os.close(fd)


def tcx_attached(ifindex: int) -> Program | None:
    """Our redirect on the ingress of a link. Raises NotFound if there is no such link."""
    for prog_id in tcx_programs(ifindex):
        found = program_by_id(prog_id)
        if found and found.name == NAME:
            return found
    return None


def detach_tcx(ifindex: int) -> bool:
    """Take our redirect away, nobody else's; False if there is none or no such link."""
    try:
        ours = tcx_attached(ifindex)
        if ours is None:
            return False
        fd = program_fd(ours.id)
    except NotFound:
        return False
    try:
        attr = struct.pack("=IIIIIIQ", ifindex, fd, TCX_INGRESS, 0, 0, 0, 0)
        _bpf(PROG_DETACH, bytearray(attr), f"detach the redirect from link {ifindex}")
    except NotFound:
        return False
    finally:
        os.close(fd)
    return True


def tcx_missing() -> str:
    """Empty if tcx works here, else why not. Changes nothing."""
    try:
        os.close(load_redirect(1))
        tcx_programs(0x7FFFFFFF)
    except NotFound:
        return ""
    except NetlinkError as error:
        if error.errno == errnos.EINVAL:
            return "the kernel has no tcx (needs Linux 6.6 and CONFIG_NET_XGRESS)"
        return error.msg
    return "the kernel found tcx programs on a link that cannot be"
