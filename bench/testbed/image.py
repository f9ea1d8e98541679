"""The micro-VM's kernel and initramfs, built from Debian packages into `.cache/guest`.

Debian packages: busybox-static, iperf3, musl-tools. The kernel package is downloaded and unpacked
in the cache, not installed: installing it would change the machine's boot menu.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.testbed import cpio

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "guest"
KERNEL_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX = Path("/bin/busybox")
IPERF = Path("/usr/bin/iperf3")
MUSL = Path("/usr/bin/musl-gcc")
TRAFFIC = Path(__file__).with_name("traffic.c")

# In loading order: the guest's insmod does not resolve dependencies.
MODULES = (
    "failover net_failover virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev "
    "virtio_pci virtio_net llc stp garp mrp 8021q"
).split()

MUSL_FLAGS = "-static -std=gnu11 -O2 -Wall -Wextra -Wshadow -Wconversion -Werror -s"

KERNEL_ARGS = (
    "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check tsc=reliable nokaslr "
    "nowatchdog audit=0 apparmor=0 cryptomgr.notests rcupdate.rcu_expedited=1"
)

# Commands are served by a process of their own: process 1 gets a SIGCHLD for every orphan, and ash
# loses what it has read of a line when one arrives.
INIT = """\
#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
export PATH=/bin HOME=/
for module in @MODULES@; do insmod /modules/$module.ko || echo "insmod $module failed"; done
ip link set lo up
exec init
""".replace("@MODULES@", " ".join(MODULES))

# A reply is "ID STATUS LENGTH\n" and LENGTH bytes, so output may be binary. A command is one line
# in printf's %b notation, which ash decodes without starting a process. Each command has its own
# output file, since a background process that it leaves may still write.
SERVE = """\
#!/bin/sh
export PATH=/bin HOME=/
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
printf '0 0 5\\nready' >&3
while read -r id limit line <&3; do
    out=/tmp/.out.$id
    timeout -s KILL "$limit" sh -c "$(printf %b "$line")" </dev/null >$out 2>&1 3>&-
    status=$?
    length=$(stat -c %s $out)
    printf '%s %s %s\\n' "$id" "$status" "$length" >&3
    head -c "$length" $out >&3
    rm $out
done
poweroff -f
"""


class ImageError(Exception):
    """The guest's image cannot be built; the message says what is missing and what to do."""


@dataclass(frozen=True)
class Image:
    """Files of the guest; `tools` is a directory with its programs, for the host to run too."""

    kernel: Path
    initramfs: Path
    tools: Path

    def argv(self) -> list[str]:
        """QEMU's arguments for the kernel: the console is ttyS0, commands come by ttyS1."""
        files = ["-kernel", str(self.kernel), "-initrd", str(self.initramfs)]
        return [*files, "-append", KERNEL_ARGS]


@cache
def image() -> Image:
    """The image with the newest kernel package that apt knows, built if it is not in the cache.

    Raises ImageError when a package or a tool is missing.
    """
    for tool in (BUSYBOX, IPERF, MUSL):
        if not tool.exists():
            raise ImageError(f"{tool} is missing: apt-get install busybox-static iperf3 musl-tools")
    CACHE.mkdir(parents=True, exist_ok=True)
    with locked(CACHE / "lock"):
        package, version = _kernel_package()
        home = CACHE / f"{version}-{_recipe()}"
        if not home.exists():
            _build(package, home)
    return Image(home / "vmlinuz", home / "initramfs", home / "tools")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, across processes."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def replace(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old text or the new, never a part."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.rename(path)


def _recipe() -> str:
    """A digest of what the image is built of besides the kernel."""
    sources = (Path(__file__), Path(cpio.__file__), TRAFFIC)
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources))
    for tool in (BUSYBOX, IPERF):
        status = tool.stat()
        digest.update(f"{tool} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:8]


def _run(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        argv, cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"}
    )
    if done.returncode:
        raise ImageError(f"{' '.join(argv)}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _kernel_package() -> tuple[str, str]:
    """Name and version of the real package behind the kernel metapackage.

    Asking apt takes a second, so the answer is cached until apt's lists change.
    """
    lists = Path("/var/lib/apt/lists")
    stamp = str(lists.stat().st_mtime_ns) if lists.exists() else ""
    cached = CACHE / "kernel"
    if cached.exists():
        fields = cached.read_text().split()
        if len(fields) == 3 and fields[0] == stamp:
            return fields[1], fields[2]
    name, version = _ask_apt()
    replace(cached, f"{stamp} {name} {version}\n")
    return name, version


def _ask_apt() -> tuple[str, str]:
    hint = "run apt-get update (./run setup does)"
    try:
        depends = _run("apt-cache", "depends", "--important", KERNEL_PACKAGE)
    except FileNotFoundError as error:
        raise ImageError("apt-cache is missing: the guest needs a Debian host") from error
    except ImageError as error:
        raise ImageError(f"{error}\n{hint}") from error
    name = re.search(r"Depends: (linux-image-\S+)", depends)
    if name is None:
        raise ImageError(f"apt knows no {KERNEL_PACKAGE}: {hint}")
    shown = _run("apt-cache", "show", "--no-all-versions", name[1])
    version = re.search(r"^Version: (\S+)$", shown, re.M)
    if version is None:
        raise ImageError(f"apt knows no version of {name[1]}: {hint}")
    return name[1], version[1]


def _build(package: str, home: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix="build-", dir=CACHE))
    try:
        try:
            _run("apt-get", "-o", "APT::Sandbox::User=root", "download", package, cwd=work)
        except ImageError as error:
            raise ImageError(f"{error}\nif the package is gone: run apt-get update") from error
        (deb,) = work.glob("*.deb")
        _run("dpkg-deb", "-x", str(deb), str(work / "root"))
        (vmlinuz,) = work.glob("root/boot/vmlinuz-*")
        out = work / "out"
        out.mkdir()
        vmlinuz.rename(out / "vmlinuz")
        traffic = out / "tools" / TRAFFIC.stem
        traffic.parent.mkdir()
        _run(str(MUSL), *MUSL_FLAGS.split(), str(TRAFFIC), "-o", str(traffic))
        (out / "initramfs").write_bytes(_initramfs(work / "root", traffic))
        out.rename(home)
    finally:
        shutil.rmtree(work)


def _module(root: Path, name: str) -> bytes:
    files = sorted(root.glob(f"lib/modules/**/{name}.ko*"))
    if not files:
        raise ImageError(f"module {name} is not in {KERNEL_PACKAGE}: run apt-get update")
    data = files[0].read_bytes()
    return lzma.decompress(data) if files[0].suffix == ".xz" else data


def _libraries(program: Path) -> list[Path]:
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", _run("ldd", str(program)))]


def _initramfs(root: Path, traffic: Path) -> bytes:
    archive = cpio.Archive()
    archive.node("dev/console", stat.S_IFCHR | 0o600, 5, 1)
    for name in ("proc", "sys", "tmp"):
        archive.directory(name)
    archive.file("init", INIT.encode(), 0o755)
    archive.file("serve", SERVE.encode(), 0o755)
    archive.file("etc/inittab", b"::once:/serve\n")
    archive.file("bin/busybox", BUSYBOX.read_bytes(), 0o755)
    for applet in sorted(set(_run(str(BUSYBOX), "--list").split()) - {"busybox"}):
        archive.link(f"bin/{applet}", "busybox")
    archive.file("bin/iperf3", IPERF.read_bytes(), 0o755)
    archive.file("bin/traffic", traffic.read_bytes(), 0o755)
    for library in _libraries(IPERF):
        archive.file(str(library).lstrip("/"), library.read_bytes(), 0o755)
    for module in MODULES:
        archive.file(f"modules/{module}.ko", _module(root, module))
    return archive.encode()
