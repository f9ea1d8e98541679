"""What a test, a demo or a benchmark could leave behind on the machine."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.testbed.slowness import SLOWNESS
from cni.kernel.netlink import Netlink
from cni.kernel.netns import libc

Snapshot = frozenset[str]
_PR_SET_CHILD_SUBREAPER = 36
_MACVTAP_SECONDS = 30.0 * SLOWNESS  # how long the kernel may take to remove device nodes


class Process(NamedTuple):
    """A process; `name` has at most 15 characters (proc(5), comm)."""

    id: int
    name: str
    parent: int


def adopt_orphans() -> None:
    """Become the parent of descendants that lose theirs, so that `take` sees them (prctl(2))."""
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def take(shared: bool = True) -> Snapshot:
    """List links, qdiscs, namespaces, mounts, descendants, and files in vmlink's run directory.

    With `shared` also huge pages and macvtaps' device nodes, which all processes of the machine
    share, so that others may have made them meanwhile.
    """
    seen = set(_links()) | set(_mounts()) | set(_descendants())
    seen |= {f"namespace {p}" for p in Path("/run/netns").glob("*")}
    seen |= {f"file {p}" for p in Path("/run/vmlink").rglob("*")}
    if shared:
        seen |= _device_nodes()
        for limit in ("nr_hugepages", "nr_overcommit_hugepages"):
            seen.add(f"{limit} " + Path("/proc/sys/vm", limit).read_text().strip())
    return frozenset(seen)


def left_behind(before: Snapshot, shared: bool = True) -> list[str]:
    """What is there now and was not there before, one line each."""
    end = time.monotonic() + _MACVTAP_SECONDS
    while (left := take(shared) - before) & _device_nodes() and time.monotonic() < end:
        time.sleep(0.02)
    return sorted(left)


def _device_nodes() -> set[str]:
    """Device nodes of macvtaps, which the kernel removes late.

    One kernel worker cleans up dead namespaces in turn, and waits a second at a time for each last
    reference to their links.
    """
    return {f"device {p}" for p in Path("/dev").glob("tap[0-9]*")}


def _links() -> list[str]:
    with Netlink() as netlink:
        links = netlink.links()
    shown = subprocess.run(
        ["tc", "-json", "qdisc", "show"], capture_output=True, check=True, text=True
    )
    qdiscs = json.loads(shown.stdout or "[]")
    return [f"link {link.name}" for link in links] + [
        f"qdisc {q['kind']} on {q.get('dev', '?')}" for q in qdiscs
    ]


def _mounts() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return ["mount " + line.split()[4] for line in lines]


def _descendants() -> list[str]:
    processes = list(living())
    family = {os.getpid()}
    while more := {p.id for p in processes if p.parent in family} - family:
        family |= more
    family.remove(os.getpid())
    return [f"process {p.id} {p.name}" for p in processes if p.id in family]


def living() -> Iterator[Process]:
    """All processes of the machine but zombies."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            pid, rest = (directory / "stat").read_text().split(" (", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue
        name, fields = rest.rsplit(") ", 1)
        state, parent = fields.split()[:2]
        if state != "Z":
            yield Process(int(pid), name, int(parent))
