"""The initramfs of the lab: busybox, and the modules that the root file system needs."""

from __future__ import annotations

import lzma
import stat
from pathlib import Path

from bench.testbed import cpio
from bench.testbed.image import BUSYBOX
from bench.testbed.kernel_lab.kernels import Kernel, KernelError

INIT = Path(__file__).with_name("initramfs.sh")
MODULES = ("virtio_pci", "9p", "9pnet_virtio", "overlay", "virtio_console", "virtio_rng")
APPLETS = ("sh", "mount", "insmod", "mkdir", "switch_root", "sed")


def build(kernel: Kernel) -> bytes:
    """The archive for a kernel. Raises KernelError."""
    archive = cpio.Archive()
    for name in ("proc", "sys", "ro", "rw", "new"):
        archive.directory(name)
    archive.node("dev/console", stat.S_IFCHR | 0o600, 5, 1)
    archive.file("init", INIT.read_bytes(), 0o755)
    archive.file("bin/busybox", BUSYBOX.read_bytes(), 0o755)
    for applet in APPLETS:
        archive.link(f"bin/{applet}", "busybox")
    order = kernel.modules(*MODULES)
    for path in order:
        archive.file(f"modules/{_name(path)}", _content(path))
    archive.file("modules/order", "".join(f"{_name(path)}\n" for path in order).encode())
    return archive.encode()


def _name(module: Path) -> str:
    return f"{module.name.partition('.')[0]}.ko"


def _content(module: Path) -> bytes:
    if module.suffix == ".ko":
        return module.read_bytes()
    if module.suffix == ".xz":
        return lzma.decompress(module.read_bytes())
    raise KernelError(f"{module}: this compression is not known: teach it to {__file__}")
