"""Whether KVM really runs guests on this node: /dev/kvm also opens where it does not.

`python -m cni.vmm.kvm` runs a guest of a few bytes, which counts in 64-bit mode, and prints the
seconds that it took and KVM's exit reason. Some KVMs (kvm_pvm, nested ones without help from the
processor) interpret such a guest instruction by instruction: a kernel boots in them for hours, as
if it hung.

Sources: Documentation/virt/kvm/api.rst; Intel SDM volume 3, section 9.8.5 (IA-32e mode).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import subprocess
import sys
import time
from fcntl import ioctl

from cni.errors import NotReady

DEVICE = "/dev/kvm"
_SECONDS = 5
_COUNT = 500_000  # rounds, of two instructions each
# Instructions a second. Measured: interpreters 3.5 million, QEMU's TCG 100 to 500 million,
# processors above 1000 million.
_FAST = 50e6
_TRIES = 3  # another process may have the core for the few milliseconds of one try
_CODE, _TABLES, _SIZE = 0x4000, 0x1000, 0x5000
_EXIT_HLT = 5


def ready() -> None:
    """Check that KVM runs guests at the processor's speed. Raises NotReady with the reason."""
    if not os.path.exists(DEVICE):
        raise NotReady(
            f"{DEVICE} is missing; load kvm_intel or kvm_amd, in a VM ask for nested virtualisation"
        )
    command = [sys.executable, "-m", "cni.vmm.kvm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired as e:
        raise _useless(f"a guest of a few bytes did not end in {_SECONDS} s") from e
    if done.returncode:
        raise _useless((done.stderr.splitlines() or ["no reason"])[-1])
    seconds, reason = done.stdout.split()
    rate = 2 * _COUNT / float(seconds)
    speed = f"a guest in 64-bit mode did {rate / 1e6:.1f} million instructions a second"
    if rate < _FAST:
        raise _useless(f"{speed}: they are interpreted, not run by the processor")
    if int(reason) != _EXIT_HLT:
        raise _useless(f"{speed}, and left by exit reason {reason} instead of its hlt")


def _useless(why: str) -> NotReady:
    return NotReady(f"{DEVICE} opens, but {why}; give QEMU -accel tcg")


def _run() -> tuple[float, int]:
    """The seconds and the KVM_EXIT_* reason of the fastest of a few guests."""
    kvm = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    return min(_guest(kvm) for _ in range(_TRIES))


def _guest(kvm: int) -> tuple[float, int]:
    vm = ioctl(kvm, _io(0x01), 0)  # KVM_CREATE_VM
    memory = _memory()
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ioctl(vm, _iow(0x46, 32), struct.pack("<IIQQQ", 0, 0, 0, _SIZE, address))  # .._MEMORY_REGION
    cpu = ioctl(vm, _io(0x41), 0)  # KVM_CREATE_VCPU
    shared = mmap.mmap(cpu, ioctl(kvm, _io(0x04), 0))  # KVM_GET_VCPU_MMAP_SIZE
    special = bytearray(312)
    ioctl(cpu, _ior(0x83, 312), special)  # KVM_GET_SREGS
    ioctl(cpu, _iow(0x84, 312), _long_mode(special))
    registers = bytearray(144)
    struct.pack_into("<QQ", registers, 128, _CODE, 2)  # rip, rflags
    ioctl(cpu, _iow(0x82, 144), bytes(registers))  # KVM_SET_REGS
    start = time.perf_counter()
    ioctl(cpu, _io(0x80), 0)  # KVM_RUN
    seconds = time.perf_counter() - start
    os.close(cpu)
    os.close(vm)
    return seconds, struct.unpack_from("<I", shared, 8)[0]


def _memory() -> mmap.mmap:
    """A guest's memory: page tables that map the first 2 MiB to themselves, and the code."""
    memory = mmap.mmap(-1, _SIZE)
    for table, entry in enumerate((_TABLES + 0x1003, _TABLES + 0x2003, 0x83)):
        struct.pack_into("<Q", memory, _TABLES + table * 0x1000, entry)
    # mov ecx, COUNT; dec ecx; jnz -4; hlt
    code = b"\xb9" + struct.pack("<I", _COUNT) + b"\xff\xc9\x75\xfc\xf4"
    memory[_CODE : _CODE + len(code)] = code
    return memory


def _long_mode(special: bytearray) -> bytes:
    """Fill in a struct kvm_sregs for 64-bit mode.

    It has eight segments of 24 bytes, two tables of 16, the control registers, EFER.
    """
    for n in range(6):
        code = n == 0  # cs, then ds, es, fs, gs, ss
        # type, present, dpl, db, s, l, g, avl, unusable, padding
        fields = (11 if code else 3, 1, 0, not code, 1, code, 1, 0, 0, 0)
        selector = 8 if code else 16
        struct.pack_into("<QIH10B", special, 24 * n, 0, 0xFFFFFFFF, selector, *fields)
    cr0, cr4, efer = 0x80000031, 0x20, 0x500
    struct.pack_into("<6Q", special, 224, cr0, 0, _TABLES, cr4, 0, efer)
    return bytes(special)


def _io(number: int) -> int:
    return 0xAE00 | number


def _iow(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | _io(number)


def _ior(number: int, size: int) -> int:
    return 2 << 30 | size << 16 | _io(number)


if __name__ == "__main__":
    try:
        print(*_run())
    except OSError as error:
        sys.exit(f"{error}")
