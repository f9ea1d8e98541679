"""Files that readers find whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cni.errors import IOFailure


def replace(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write `path` anew. Raises IOFailure; what was there is then still there."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, flags, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
        fresh.rename(path)
    except OSError as e:
        with suppress(OSError):
            fresh.unlink()
        raise IOFailure(f"cannot write {path}: {e.strerror}") from e
