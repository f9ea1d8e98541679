"""What is on the machine that a test, a demo or a benchmark could leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cni.kernel.netlink import Netlink
from cni.kernel.netns import libc

Snapshot = frozenset[str]
_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE = 30.0  # seconds


class Process(NamedTuple):
    """`name` is of 15 characters at most (proc(5), comm)."""

    id: int
    name: str
    parent: int


def adopt_orphans() -> None:
    """What loses its parent becomes a child of this process, and is seen (prctl(2))."""
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def take(shared: bool = True) -> Snapshot:
    """Links, qdiscs, namespaces, mounts, children, and vmlink's run directory.

    `shared` is what all processes of the machine have in common, and others may have made
    meanwhile: huge pages, macvtaps' device nodes.
    """
    found = set(_links()) | set(_mounts()) | set(_processes())
    found |= {f"namespace {p}" for p in Path("/run/netns").glob("*")}
    found |= {f"file {p}" for p in Path("/run/vmlink").rglob("*")}
    if shared:
        found |= _nodes()
        for limit in ("nr_hugepages", "nr_overcommit_hugepages"):
            found.add(f"{limit} " + Path("/proc/sys/vm", limit).read_text().strip())
    return frozenset(found)


def left_behind(before: Snapshot, shared: bool = True) -> list[str]:
    """What is there now and was not, in words."""
    end = time.monotonic() + _PATIENCE
    while (left := take(shared) - before) & _nodes() and time.monotonic() < end:
        time.sleep(0.02)
    return sorted(left)


def _nodes() -> set[str]:
    """Device nodes of macvtaps. The kernel's one worker for dead namespaces removes them, after all
    that died before, and waits a second at a time for each last reference to their links.
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


def _processes() -> list[str]:
    """The living processes that descend from this one."""
    found = list(living())
    ours = {os.getpid()}
    while more := {p.id for p in found if p.parent in ours} - ours:
        ours |= more
    ours.remove(os.getpid())
    return [f"process {p.id} {p.name}" for p in found if p.id in ours]


def living() -> Iterator[Process]:
    """All of the machine but zombies."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            pid, rest = Path("/proc", process, "stat").read_text().split(" (", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue
        name, fields = rest.rsplit(") ", 1)
        state, parent = fields.split()[:2]
        if state != "Z":
            yield Process(int(pid), name, int(parent))
