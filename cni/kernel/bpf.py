"""vmlink's two eBPF programs, loaded and attached by bpf(2).

One redirects what comes in on a link to another link, one makes the namespace's own stack ignore
it. Links are those of the calling thread's namespace. Sources: bpf(2), bpf-helpers(7), union
bpf_attr in linux/bpf.h, Documentation/bpf/standardization/instruction-set.rst.
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
MOST_PROGRAMS = 64  # of one link: BPF_MPROG_MAX
INSTRUCTION = struct.Struct("=BBhi")
MOV_R0, MOV_R1, MOV_R2 = (0xB7, 0x00), (0xB7, 0x01), (0xB7, 0x02)
CALL, EXIT = (0x85, 0x00), (0x95, 0x00)
BPF_REDIRECT, BPF_F_INGRESS = 23, 1
BPF_SKB_CHANGE_TYPE, PACKET_OTHERHOST = 32, 3
TC_ACT_UNSPEC = -1
_KEPT = 32  # programs are kept loaded for the ifindexes up to this one


@dataclass(frozen=True)
class Program:
    """A loaded program; `target` is the ifindex that ours redirects to, 0 if it is not known."""

    id: int
    name: str
    target: int


def syscall(command: int, attr: bytearray, what: str) -> int:
    """Call bpf(2) with a union bpf_attr, and return its result. Raises NetlinkError.

    `what` is being done, for the message of an error.
    """
    number = SYSCALL.get(platform.machine())
    if number is None:
        reason = f"vmlink does not know the number of bpf(2) on {platform.machine()}"
        raise refused(errnos.EOPNOTSUPP, what, reason)
    buffer = (ctypes.c_char * len(attr)).from_buffer(attr)
    result: int = libc.syscall(number, command, buffer, len(attr))
    if result < 0:
        raise refused(ctypes.get_errno(), what)
    return result


def load_redirect(ifindex: int, *, into: bool = False) -> int:
    """Load the program that redirects every frame to a link; the caller closes the descriptor.

    The frames leave by that link or, with `into`, come in there. Raises NetlinkError.
    """
    return load(
        NAME,
        (*MOV_R1, 0, ifindex),
        (*MOV_R2, 0, BPF_F_INGRESS if into else 0),
        (*CALL, 0, BPF_REDIRECT),
        (*EXIT, 0, 0),
    )


@cache
def ignore_program() -> int:
    """Load the program that keeps a namespace's own stack from every frame; it stays loaded.

    It marks frames as another host's (PACKET_OTHERHOST), so that the stack drops them as it does in
    promiscuous mode; a tap, a bridge or a packet socket still gets them. Raises NetlinkError.
    """
    return load(
        IGNORE,
        (*MOV_R2, 0, PACKET_OTHERHOST),
        (*CALL, 0, BPF_SKB_CHANGE_TYPE),
        (*MOV_R0, 0, TC_ACT_UNSPEC),
        (*EXIT, 0, 0),
    )


def load(name: str, *instructions: tuple[int, int, int, int]) -> int:
    """Load a classifier (BPF_PROG_TYPE_SCHED_CLS); the caller closes the descriptor.

    `instructions` are as INSTRUCTION packs them. Raises NetlinkError.
    """
    return load_code(name, b"".join(INSTRUCTION.pack(*i) for i in instructions))


def load_code(name: str, instructions: bytes) -> int:
    """Load a classifier from its packed instructions. Raises NetlinkError."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    license_ = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQIIQII16s",
        SCHED_CLS,
        len(instructions) // INSTRUCTION.size,
        ctypes.addressof(code),
        ctypes.addressof(license_),
        *(0, 0, 0, 0, 0),
        name.encode(),
    )
    return syscall(PROG_LOAD, bytearray(attr), f"load the program {name}")


@contextmanager
def redirect_program(ifindex: int) -> Iterator[int]:
    """A descriptor of the program that redirects to a link, for as long as the block lasts.

    The programs of small ifindexes are loaded once and kept: the links of all pods have the same
    few, and the number is looked up in the namespace of the frame. Raises NetlinkError.
    """
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
    """Attach a program to a link's ingress, after those that are there.

    It stays when the descriptor is closed. Raises NetlinkError.
    """
    attr = struct.pack("=IIIIIIQ", ifindex, prog_fd, TCX_INGRESS, 0, 0, 0, 0)
    syscall(PROG_ATTACH, bytearray(attr), f"attach the redirect to link {ifindex}")


def tcx_programs(ifindex: int) -> list[int]:
    """The ids of all tcx programs on a link's ingress, in their order. Raises NetlinkError."""
    ids = (ctypes.c_uint32 * MOST_PROGRAMS)()
    query = (ifindex, TCX_INGRESS, 0, 0, ctypes.addressof(ids), MOST_PROGRAMS)
    attr = bytearray(struct.pack("=IIIIQIIQQQQ", *query, 0, 0, 0, 0, 0))
    syscall(PROG_QUERY, attr, f"list the tcx programs of link {ifindex}")
    count: int = struct.unpack_from("=I", attr, 24)[0]
    return list(ids[:count])


def program_fd(prog_id: int) -> int:
    """Open a loaded program; the caller closes the descriptor. Raises NotFound, NetlinkError."""
    attr = bytearray(struct.pack("=III", prog_id, 0, 0))
    return syscall(PROG_GET_FD_BY_ID, attr, f"open bpf program {prog_id}")


def program(fd: int) -> Program:
    """Read the id, the name and the target of a program (struct bpf_prog_info).

    Raises NetlinkError.
    """
    code = ctypes.create_string_buffer(64)
    info = bytearray(128)
    struct.pack_into("=I", info, 20, 64)
    struct.pack_into("=Q", info, 32, ctypes.addressof(code))
    read_info(fd, info, f"read bpf program {fd}")
    name = bytes(info[64:80]).rstrip(b"\0").decode("utf-8", "replace")
    number: int = struct.unpack_from("=I", info, 4)[0]
    first = INSTRUCTION.unpack_from(code.raw)
    # With bpf_jit_harden=2 the kernel shows other instructions, which hide the constants.
    target = first[3] if name == NAME and first[:2] == MOV_R1 else 0
    return Program(number, name, target)


def read_info(fd: int, info: bytearray, what: str) -> None:
    """Fill the struct bpf_prog_info or bpf_map_info of a descriptor. Raises NetlinkError."""
    view = (ctypes.c_char * len(info)).from_buffer(info)
    attr = bytearray(struct.pack("=IIQ", fd, len(info), ctypes.addressof(view)))
    syscall(OBJ_GET_INFO_BY_FD, attr, what)


def program_by_id(prog_id: int) -> Program | None:
    """Read a loaded program, None if it is gone. Raises NetlinkError."""
    try:
        fd = program_fd(prog_id)
    except NotFound:
        return None
    try:
        return program(fd)
    finally:
        os.close(fd)


def tcx_attached(ifindex: int, name: str = NAME) -> Program | None:
    """A program of ours among the tcx programs of a link, the redirect unless `name` is another's.

    None for none. Raises NotFound for no link, NetlinkError.
    """
    for prog_id in tcx_programs(ifindex):
        loaded = program_by_id(prog_id)
        if loaded and loaded.name == name:
            return loaded
    return None


def detach_tcx(ifindex: int) -> bool:
    """Detach our redirect, nobody else's; False if there is none or no such link.

    Raises NetlinkError.
    """
    try:
        ours = tcx_attached(ifindex)
        if ours is None:
            return False
        fd = program_fd(ours.id)
    except NotFound:
        return False
    try:
        attr = struct.pack("=IIIIIIQ", ifindex, fd, TCX_INGRESS, 0, 0, 0, 0)
        syscall(PROG_DETACH, bytearray(attr), f"detach the redirect from link {ifindex}")
    except NotFound:
        return False
    finally:
        os.close(fd)
    return True


def tcx_missing() -> str:
    """Say why tcx does not work on this kernel, "" if it does; nothing is attached."""
    try:
        os.close(load_redirect(1))
        tcx_programs(0x7FFFFFFF)
    except NotFound:
        return ""
    except NetlinkError as error:
        if error.errno == errnos.EINVAL:
            return "the kernel has no tcx (needs Linux 6.6 and CONFIG_NET_XGRESS)"
        return error.msg
    return "the kernel lists tcx programs of a link that does not exist"
