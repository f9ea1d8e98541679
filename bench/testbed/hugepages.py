"""Huge pages for the time that they are wanted.

They are surplus pages: the kernel makes them for the process that maps them, and takes them back
with it, however it ends; only their number is allowed beforehand (vm/hugetlbpage.rst).
"""

from __future__ import annotations

import fcntl
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OVERCOMMIT = Path("/proc/sys/vm/nr_overcommit_hugepages")
_MAP_HUGETLB = 0x40000


def missing(size: int) -> str:
    """Why `size` bytes of huge pages cannot be had now, in words; empty when they can."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB
    try:
        with taken(size), mmap.mmap(-1, _rounded(size), flags=flags):
            return ""
    except OSError as error:
        return f"{size >> 20} MiB of huge pages cannot be had: {error}"


@contextmanager
def taken(size: int) -> Iterator[None]:
    """Allow `size` bytes more (rounded up to whole pages) than now. Raises OSError."""
    count = _rounded(size) // _page()
    _allow(count)
    try:
        yield
    finally:
        _allow(-count)


def _allow(more: int) -> None:
    with _OVERCOMMIT.open("r+") as limit:
        fcntl.flock(limit, fcntl.LOCK_EX)
        changed = int(limit.read()) + more
        limit.seek(0)
        limit.write(str(changed))


def _rounded(size: int) -> int:
    return -(-size // _page()) * _page()


def _page() -> int:
    """The size of a huge page in bytes (proc_meminfo(5))."""
    found = re.search(r"^Hugepagesize: +(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    if not found:
        raise OSError("this kernel has none")
    return int(found[1]) << 10
