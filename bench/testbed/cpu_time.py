"""CPU time: of the host without its guests' vCPUs, and of one process."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

NAMED_VCPUS = ("-name", "debug-threads=on")  # arguments of QEMU that name its vCPU threads

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq of /proc/stat; guest time is in user
_CPUCLOCK_SCHED = 2  # linux/posix-timers.h


def host_seconds(vmms: Sequence[int]) -> float:
    """CPU seconds used on this machine so far, without the vCPUs of these QEMU processes.

    That is the kernel's datapath, the switch, the VMMs' own work and the programs that send and
    receive. Everything else that runs is counted too, so measure on a quiet machine. Raises
    ProcessLookupError when a process has no named vCPUs. Source: proc(5), /proc/stat and
    schedstat; qemu(1), -name.
    """
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return sum(int(fields[n]) for n in _BUSY) * _TICK - sum(map(vcpu_seconds, vmms))


def vcpu_seconds(vmm: int) -> float:
    """CPU seconds used so far by the vCPU threads of a QEMU that was started with NAMED_VCPUS.

    Raises ProcessLookupError when the process has no such threads.
    """
    spent = []
    for thread in Path(f"/proc/{vmm}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # QEMU's workers come and go
            if (thread / "comm").read_text().startswith("CPU "):
                spent.append(int((thread / "schedstat").read_text().split()[0]))
    if not spent:
        raise ProcessLookupError(
            f"process {vmm} has no threads named as vCPUs; start QEMU with {' '.join(NAMED_VCPUS)}"
        )
    return sum(spent) / 1e9


def process_ms(pid: int) -> float:
    """CPU milliseconds used so far by a process, ended threads included.

    Source: clock_getcpuclockid(3).
    """
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED) * 1000
