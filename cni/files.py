"""Small files, read and written whole, in as few system calls as possible.

They are written by calls of `os` because the objects of open() make about as many system calls
again, and an ADD writes several files.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cni.errors import IOFailure

_PIECE = 1 << 16


def replace(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    `mode` is exact: the umask does not count. Raises IOFailure; the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        write_and_rename(str(temporary), str(path), data, os.O_EXCL, mode, exact=True)
    except OSError as e:
        raise IOFailure(f"cannot write {path}: {e.strerror}") from e


def write_and_rename(
    temporary: str, path: str, data: bytes, flags: int, mode: int, exact: bool = False
) -> None:
    """Write the file `temporary` and rename it to `path`.

    `flags` are further ones of open(2). The umask is taken off `mode` unless it is `exact`. Raises
    OSError; `temporary` is gone then.
    """
    try:
        write(temporary, data, os.O_NOFOLLOW | flags, mode)
        if exact:
            os.chmod(temporary, mode)
        os.rename(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def read(path: str, flags: int = 0) -> bytes:
    """Read a whole file; `flags` are further ones of open(2). Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        data = piece = os.read(fd, _PIECE)
        while len(piece) == _PIECE:
            piece = os.read(fd, _PIECE)
            data += piece
        return data
    finally:
        os.close(fd)


def write(path: str, data: bytes, flags: int, mode: int) -> None:
    """Write a whole file, which is made if it is not there.

    An existing file is overwritten in place and then cut to the length of `data`. `flags` are
    further ones of open(2). Raises OSError.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, mode)
    try:
        _write_all(fd, data)
        if not flags & (os.O_EXCL | os.O_TRUNC) and os.fstat(fd).st_size > len(data):
            os.ftruncate(fd, len(data))
    finally:
        os.close(fd)


def append(path: str, data: bytes) -> None:
    """Append to an existing file, by one write(2) where there is room. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _write_all(fd, data)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
