"""Small files, read and written whole: an ADD's in as few system calls as it takes (the objects of
open() make as many again), and files that readers find whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cni.errors import IOFailure

_PIECE = 1 << 16


def replace(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write `path` anew. Raises IOFailure; what was there is then still there."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.unlink(missing_ok=True)
        by_way_of(str(fresh), str(path), data, os.O_EXCL, mode, exact=True)
    except OSError as e:
        raise IOFailure(f"cannot write {path}: {e.strerror}") from e


def by_way_of(
    fresh: str, path: str, data: bytes, flags: int, mode: int, exact: bool = False
) -> None:
    """Write `fresh`, with further `flags` of open(2), and give it the name `path`. The `mode` is
    less the umask, unless it is `exact`. Raises OSError; `fresh` is gone then."""
    try:
        write(fresh, data, os.O_NOFOLLOW | flags, mode)
        if exact:
            os.chmod(fresh, mode)
        os.rename(fresh, path)
    except OSError:
        with suppress(OSError):
            os.unlink(fresh)
        raise


def read(path: str, flags: int = 0) -> bytes:
    """`flags` are further ones of open(2). Raises OSError."""
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
    """Makes the file if it is not there, and cuts off what it had behind `data`. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, mode)
    try:
        _write_all(fd, data)
        if not flags & (os.O_EXCL | os.O_TRUNC) and os.fstat(fd).st_size > len(data):
            os.ftruncate(fd, len(data))
    finally:
        os.close(fd)


def append(path: str, data: bytes) -> None:
    """To a file that is there, in one piece where the file system has room. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _write_all(fd, data)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
