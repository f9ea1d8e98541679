"""Values below /proc/sys/net, in the calling thread's network namespace.

Source: Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

import os
from contextlib import suppress

from cni.errors import VmlinkError


def read(name: str) -> str:
    """Return a value, "" where there is none. Raises VmlinkError."""
    with suppress(FileNotFoundError):
        return _access(name)
    return ""


def write(name: str, value: str) -> None:
    """Set a value unless it is set. Raises VmlinkError, also where there is none."""
    try:
        if _access(name) != value:
            _access(name, value)
    except FileNotFoundError as e:
        raise VmlinkError(f"cannot set /proc/sys/net/{name} to {value}: there is none") from e


def write_if_there(name: str, value: str) -> None:
    """Set a value, if there is one: a link without IPv6 has none of its. Raises VmlinkError."""
    with suppress(FileNotFoundError):
        _access(name, value)


def _access(name: str, value: str | None = None) -> str:
    """Read a value, or write one. Raises FileNotFoundError, and VmlinkError for other errors."""
    path = "/proc/sys/net/" + name
    try:
        # Python's own files would double the time of an open, a write and a close.
        fd = os.open(path, os.O_CLOEXEC | (os.O_RDONLY if value is None else os.O_WRONLY))
        try:
            if value is None:
                return os.read(fd, 64).decode().strip()
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise
    except OSError as e:
        what = f"read {path}" if value is None else f"set {path} to {value}"
        raise VmlinkError(f"cannot {what}: {e.strerror}") from e
    return value
