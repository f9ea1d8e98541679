"""QEMU's command line for a micro-VM."""

from __future__ import annotations

from pathlib import Path

from bench.testbed.image import Image


def arguments(kernel: Image, scratch: Path, log: Path, accel: str) -> list[str]:
    """QEMU's argv without NICs: console to `log`, commands from the socket `scratch`/control."""
    # Emulating what `max` has (SMAP among it) halves the throughput. And `pc` rather than q35, on
    # which each NIC that is plugged in later needs a port of its own.
    cpu = "host" if accel == "kvm" else "qemu64,+rdrand"
    machine = f"-machine pc -accel {accel} -cpu {cpu} -bios qboot.rom"
    bare = "-nodefaults -no-user-config -no-reboot -display none -global virtio-net-pci.romfile="
    return [
        *("qemu-system-x86_64", *machine.split(), *bare.split(), *kernel.argv()),
        *("-chardev", f"file,id=console,path={log},append=on", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=control,path={scratch}/control", "-serial", "chardev:control"),
    ]


def shared_memory(memory_mb: int, accel: str) -> list[str]:
    """Arguments that share the guest's memory with another process, as vhost-user needs it."""
    memory = f"memory-backend-memfd,id=mem,size={memory_mb}M,share=on"
    argv = ["-object", memory, "-machine", "memory-backend=mem"]
    # QEMU 7.2 ends with SIGSEGV when TCG, vhost-user and MSI-X come together.
    return [*argv, "-global", "virtio-net-pci.vectors=0"] if accel == "tcg" else argv
