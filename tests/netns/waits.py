"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def wait_for_orphans(name: str) -> None:
    """An IPAM plugin outlives a killed vmlinkd for a moment, and may still write its address."""
    until(lambda: not running(name))


def running(name: str) -> bool:
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            state = comm.with_name("stat").read_text().rsplit(") ", 1)[1][0]
            if comm.read_text().strip() == name[:15] and state != "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue
    return False


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
