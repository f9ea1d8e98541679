"""Huge pages while they are needed.

They are surplus pages: the kernel makes them for the process that maps them and frees them when it
ends. Only the number of pages is allowed beforehand. Source: admin-guide/mm/hugetlbpage.rst.
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
    """Why `size` bytes of huge pages are not available now; empty when they are."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB
    try:
        with allowed(size), mmap.mmap(-1, _rounded(size), flags=flags):
            return ""
    except OSError as error:
        return f"{size >> 20} MiB of huge pages are not available: {error}"


@contextmanager
def allowed(size: int) -> Iterator[None]:
    """Allow `size` more bytes of huge pages, rounded up to whole pages.

    Raises OSError when the kernel has no huge pages.
    """
    count = _rounded(size) // _page_size()
    _add_to_limit(count)
    try:
        yield
    finally:
        _add_to_limit(-count)


def _add_to_limit(pages: int) -> None:
    with _OVERCOMMIT.open("r+") as limit:
        fcntl.flock(limit, fcntl.LOCK_EX)
        changed = int(limit.read()) + pages
        limit.seek(0)
        limit.write(str(changed))


def _rounded(size: int) -> int:
    return -(-size // _page_size()) * _page_size()


def _page_size() -> int:
    """The size of a huge page in bytes (proc_meminfo(5))."""
    match = re.search(r"^Hugepagesize: +(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    if not match:
        raise OSError("this kernel is built without huge pages")
    return int(match[1]) << 10
