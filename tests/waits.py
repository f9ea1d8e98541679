"""Waiting for other processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bench.testbed import snapshot
from bench.testbed.slowness import SLOWNESS


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds * SLOWNESS
    while not condition():
        assert time.monotonic() < end, f"the condition is still false after {seconds} s"
        time.sleep(0.002)


def wait_for_orphans(name: str) -> None:
    """Wait until no process of this name runs.

    An IPAM plugin outlives a killed vmlinkd for a moment and may still write its address.
    """
    until(lambda: not running(name))


def running(name: str) -> bool:
    return any(process.name == name[:15] for process in snapshot.living())


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
