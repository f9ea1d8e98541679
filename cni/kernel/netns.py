"""A network namespace as an open descriptor, known by its identity (device, inode)."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cni.errors import BadEnvironment, KernelRefused

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703

# Python 3.11 has no os.setns.
libc = ctypes.CDLL(None, use_errno=True)

log = logging.getLogger(__name__)


def descriptor(path: str) -> int | None:
    """Of the namespace at `path`, for a caller who passes it on; None where there is none."""
    try:
        return Namespace.open(path).fd
    except BadEnvironment:
        return None


class Namespace:
    """Owns the descriptor. Make it with `open`, `from_fd` or `own`, and close it."""

    def __init__(self, fd: int, path: str = "") -> None:
        self.fd = fd
        self.path = path
        status = os.fstat(fd)
        self.identity = (status.st_dev, status.st_ino)

    @classmethod
    def open(cls, path: str) -> Namespace:
        """Raises BadEnvironment when `path` is missing or no network namespace."""
        try:
            # A FIFO would block an open for reading for ever.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise BadEnvironment(f"CNI_NETNS: cannot open {path!r}: {error}") from error
        return cls.from_fd(fd, path)

    @classmethod
    def from_fd(cls, fd: int, path: str = "") -> Namespace:
        """Takes the descriptor over; closes it and raises BadEnvironment if it is of no use."""
        try:
            kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
        except OSError:
            kind = 0
        if kind != CLONE_NEWNET:
            with suppress(OSError):
                os.close(fd)
            what = repr(path) if path else f"descriptor {fd}"
            raise BadEnvironment(f"CNI_NETNS: {what} is not a network namespace")
        return cls(fd, path)

    @classmethod
    def own(cls) -> Namespace:
        """The one of the process's main thread, wherever the calling thread is now."""
        return cls.open("/proc/self/ns/net")

    def same_as(self, other: Namespace) -> bool:
        return self.identity == other.identity

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is in this namespace; afterwards it is back where it was."""
        previous = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self.entered_from(previous):
                yield
        finally:
            os.close(previous)

    @contextmanager
    def entered_from(self, home: int) -> Iterator[None]:
        """The same for a caller who knows where it is: `home` is a descriptor of it."""
        _setns(self.fd, self.path or f"descriptor {self.fd}")
        try:
            yield
        finally:
            _go_back(home)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _setns(fd: int, what: str) -> None:
    if libc.setns(fd, CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise KernelRefused(f"cannot enter namespace {what}: {reason}")


def _go_back(fd: int) -> None:
    if libc.setns(fd, CLONE_NEWNET) != 0:
        # The thread would do the node's work inside a pod's namespace. No exception is safe: who
        # catches it runs on in that thread. A restarted daemon leaves the data path alone.
        log.critical("cannot leave a namespace: %s; aborting", os.strerror(ctypes.get_errno()))
        os.abort()
