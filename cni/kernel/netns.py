"""Network namespaces as open descriptors: open, compare, enter and leave them.

Sources: network_namespaces(7), setns(2), ioctl_nsfs(2).
"""

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
    """Open a namespace for another program; None if there is none at `path`.

    The caller closes the descriptor.
    """
    try:
        return Namespace.open(path).fd
    except BadEnvironment:
        return None


class Namespace:
    """An open network namespace, which `close` or the end of a `with` block closes.

    `identity` is (device, inode) of the descriptor, which no other namespace has at the same time.
    `path` is "" where the namespace came as a descriptor. Make one with `open`, `from_fd` or `own`.
    """

    def __init__(self, fd: int, path: str = "") -> None:
        self.fd = fd
        self.path = path
        status = os.fstat(fd)
        self.identity = (status.st_dev, status.st_ino)

    @classmethod
    def open(cls, path: str) -> Namespace:
        """Open the namespace at `path`. Raises BadEnvironment if there is none."""
        try:
            # A FIFO would block an open for reading for ever.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise BadEnvironment(f"CNI_NETNS: cannot open {path!r}: {reason}") from error
        return cls.from_fd(fd, path)

    @classmethod
    def from_fd(cls, fd: int, path: str = "") -> Namespace:
        """Take over a descriptor of a network namespace.

        Raises BadEnvironment if it is of anything else; it is closed then.
        """
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
        """Open the namespace of the process's main thread, wherever the calling thread is."""
        return cls.open("/proc/self/ns/net")

    def same_as(self, other: Namespace) -> bool:
        """Whether both are the same namespace."""
        return self.identity == other.identity

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put the calling thread into this namespace for the block, then back where it was.

        Raises KernelRefused.
        """
        previous = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self.entered_from(previous):
                yield
        finally:
            os.close(previous)

    @contextmanager
    def entered_from(self, home: int) -> Iterator[None]:
        """Do as `entered`, for a thread that has a descriptor of where it is, `home`.

        Raises KernelRefused.
        """
        _setns(self.fd, self.path or f"descriptor {self.fd}")
        try:
            yield
        finally:
            _go_back(home)

    def close(self) -> None:
        """Close the descriptor; the namespace itself lives on while anybody uses it."""
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
        # The thread would do the node's work inside a pod's namespace. An exception would not help:
        # what catches it goes on in the same thread. A restart of vmlinkd does not touch traffic.
        log.critical(
            "cannot leave a namespace: %s; aborting, a restart puts it right",
            os.strerror(ctypes.get_errno()),
        )
        os.abort()
