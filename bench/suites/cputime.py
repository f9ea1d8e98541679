"""CPU time of the machine apart from what guests compute for themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

NAMED_THREADS = ("-name", "debug-threads=on")  # QEMU's vCPUs can then be told by name

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq of /proc/stat; guest time is in user


def host_seconds(vmms: Sequence[int]) -> float:
    """CPU seconds so far of everything on this machine but the vCPUs of these processes of QEMU.

    So it has the kernel's datapath, the switch, the VMM's own work and the programs that send
    and receive; and whatever else runs, so only a quiet machine gives a figure. Source: proc(5),
    /proc/stat and schedstat, and qemu(1), -name.
    """
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return sum(int(fields[n]) for n in _BUSY) * _TICK - sum(map(vcpu_seconds, vmms))


def vcpu_seconds(vmm: int) -> float:
    """CPU seconds so far of the vCPU threads of a QEMU started with NAMED_THREADS."""
    spent = []
    for thread in Path(f"/proc/{vmm}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # QEMU's workers come and go
            if (thread / "comm").read_text().startswith("CPU "):
                spent.append(int((thread / "schedstat").read_text().split()[0]))
    if not spent:
        raise ProcessLookupError(f"process {vmm} has no threads that are named as vCPUs")
    return sum(spent) / 1e9
