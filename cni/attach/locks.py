"""One lock per attachment, which exists while somebody holds it or waits for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cni.cancel import Cancel
from cni.errors import DeadlineExceeded
from cni.spec.types import AttachmentKey


class KeyLocks:
    """The locks of all attachments that requests are about now."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[AttachmentKey, tuple[threading.Lock, int]] = {}

    @contextmanager
    def held(self, key: AttachmentKey, cancel: Cancel) -> Iterator[None]:
        """Raises DeadlineExceeded when another request keeps the attachment for too long."""
        lock = self._take(key)
        try:
            if not lock.acquire(timeout=max(cancel.remaining(), 0)):
                raise DeadlineExceeded(f"another request still works on {key}")
            try:
                yield
            finally:
                lock.release()
        finally:
            self._give_back(key)

    def _take(self, key: AttachmentKey) -> threading.Lock:
        with self._guard:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = (lock, users + 1)
            return lock

    def _give_back(self, key: AttachmentKey) -> None:
        with self._guard:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = (lock, users - 1)
