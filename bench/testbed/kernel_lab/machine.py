"""Boot a kernel on the machine's own files, run a command, and return its exit status.

QEMU emulates (TCG), so commands run 4 to 8 times slower; `bench.testbed.slowness` has the factor.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.testbed.kernel_lab import initramfs
from bench.testbed.kernel_lab.kernels import Kernel, KernelError
from bench.testbed.slowness import VARIABLE

GUEST = Path(__file__).with_name("guest.sh")
MEMORY_MB = 8192
SLOWNESS = 8  # of commands: 4 to 8 times that of the machine

# la57: emulating five levels of page tables makes all slower. svm: a /dev/kvm that works.
_CPU = "max,la57=off,+svm"
_KERNEL_ARGS = (
    "console=ttyS0 panic=-1 mitigations=off tsc=reliable no_timer_check nokaslr nowatchdog "
    "audit=0 apparmor=0 selinux=0 random.trust_cpu=on loglevel=4"
)


def run(kernel: Kernel, command: Sequence[str], seconds: float) -> int:
    """Run a command under the kernel, in this directory; returns its exit status.

    Its output goes to stdout, and what the kernel complained of to stderr. Raises KernelError
    when there is no status: the VM did not start, or had not ended after `seconds`.
    """
    with ExitStack() as stack:
        share = Path(tempfile.mkdtemp(prefix="vmlink-lab-"))
        stack.callback(shutil.rmtree, share)
        _fill(share, kernel, command)
        _boot(_arguments(kernel, share), seconds)
        status, complaints = share / "status", share / "complaints"
        if not status.exists() or not status.read_text().strip():
            console = (share / "console").read_text(errors="replace")[-4000:]
            raise KernelError(f"the VM ended without a status; its console ends:\n{console}")
        if complaints.exists() and (text := complaints.read_text()):
            print(f"kernel lab: the kernel complained:\n{text}", file=sys.stderr)
        return int(status.read_text())


def _fill(share: Path, kernel: Kernel, command: Sequence[str]) -> None:
    """Write what the guest finds in /run/lab."""
    (share / "initramfs").write_bytes(initramfs.build(kernel))
    shutil.copy(GUEST, share / "guest.sh")
    here = shlex.quote(str(Path.cwd()))
    term = os.environ.get("TERM", "dumb") if sys.stdout.isatty() else "dumb"
    exports = f"export TERM={shlex.quote(term)} {VARIABLE}={SLOWNESS}"
    (share / "environment").write_text(f"{exports}\ncd {here}\n")
    (share / "command").write_text(f"exec {shlex.join(command)}\n")


def _arguments(kernel: Kernel, share: Path) -> list[str]:
    machine = f"-accel tcg,thread=multi -cpu {_CPU} -smp {os.cpu_count()} -m {MEMORY_MB}"
    bare = "-nodefaults -no-user-config -no-reboot -display none -device virtio-rng-pci"
    argv = ["qemu-system-x86_64", *machine.split(), *bare.split()]
    argv += ["-kernel", str(kernel.home / "vmlinuz"), "-initrd", str(share / "initramfs")]
    argv += ["-append", _KERNEL_ARGS, "-serial", f"file:{share}/console"]
    argv += ["-chardev", "stdio,id=out,signal=off", "-device", "virtio-serial-pci"]
    argv += ["-device", "virtconsole,chardev=out"]
    for tag, path, access in (
        ("root", Path("/"), ",readonly=on"),
        ("modules", kernel.home / "lib/modules", ",readonly=on"),
        ("lab", share, ""),
    ):
        how = f"security_model=none{access},multidevs=remap"
        argv += ["-fsdev", f"local,id={tag},path={path},{how}"]
        argv += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    return argv


def _boot(argv: list[str], seconds: float) -> None:
    """Run QEMU until it ends. Raises KernelError after `seconds`."""
    argv = ["setpriv", "--pdeathsig", "KILL", *argv]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as qemu:
        try:
            qemu.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise KernelError(f"the command takes more than {seconds:.0f} s") from error
        finally:
            if qemu.poll() is None:
                qemu.send_signal(signal.SIGKILL)
