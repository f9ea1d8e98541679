"""The store of `host-local` on disk: one network's directory, its lock and its files.

Only reading every file tells who owns what, so the store is held in memory and inotify(7) names
the files to read again. Its events are queued before the writer's system call returns, hence
before it gives the lock back. Where inotify fails, every call reads all. On a file system that
changes without events (NFS) only the search for a duplicate can miss: link(2) refuses an address
that is taken, and a file is read again before it is removed.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import threading
import weakref
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address

from cni import files
from cni.errors import IOFailure
from cni.ipam.hostlocal.config import Address
from cni.spec.types import AttachmentKey

_TEMPORARY = ".vmlink"
_STORES = 32  # each costs an inotify instance, of which a user has 128
# Of a directory only: written and closed, moved out, moved in, made, deleted.
_IN_EVENTS = 0x01000000 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200
_EVENTS, _EVENT = 65536, 16 + 256  # what is read at once, and the largest
_IN_LOST = 0x2000 | 0x4000 | 0x8000  # unmounted, overflow, watch gone
_libc = ctypes.CDLL(None, use_errno=True)


def old_owner_of(key: AttachmentKey) -> bytes:
    """What host-local wrote before 0.8, and still accepts."""
    return key.container_id.strip().encode("utf-8", "surrogateescape")


def owner_of(key: AttachmentKey) -> bytes:
    return old_owner_of(key) + b"\r\n" + key.ifname.encode("utf-8", "surrogateescape")


class Store:
    """One network's directory. All methods but the constructor need the lock (`locked`)."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.mutex = threading.Lock()
        self.entries: dict[str, bytes] = {}
        self.owners: dict[bytes, set[str]] = {}
        self.taken: dict[int, set[int]] = {4: set(), 6: set()}
        self.loaded = False
        os.makedirs(directory, 0o755, exist_ok=True)
        self.lock = os.open(self.path("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o750)
        self.watch = _watch(directory)
        # Not when it leaves the cache: another thread may still wait for its lock.
        weakref.finalize(self, os.close, self.lock)
        if self.watch >= 0:
            weakref.finalize(self, os.close, self.watch)

    def path(self, name: str) -> str:
        return f"{self.directory}/{name}"

    def current(self) -> bool:
        """Whether the lock that we hold is the one that others find at the path."""
        try:
            return os.path.samestat(os.fstat(self.lock), os.stat(self.path("lock")))
        except FileNotFoundError:
            return False

    def sync(self) -> None:
        names = self._changed() if self.loaded else None
        if names is None:
            self.load()
            return
        self.loaded = False  # an error half-way means: read all again
        for name in names:
            self._read(name)
        self.loaded = True

    def load(self) -> None:
        self.loaded = False
        for owned in (self.entries, self.owners, self.taken[4], self.taken[6]):
            owned.clear()
        for name in os.listdir(self.directory):
            self._read(name)
        self.loaded = True

    def held(self, owner: bytes) -> list[str]:
        for name in tuple(self.owners.get(owner, ())):
            self._read(name)
        return sorted(self.owners.get(owner, ()))

    def reserve(self, address: Address, owner: bytes, number: int) -> bool:
        """Give the address to `owner` as the last of range set `number`; False: it is taken."""
        name, temporary = str(address), self.path(_TEMPORARY)
        # Left by a crash it may be a link of a reservation: never open that for writing.
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        files.write(temporary, owner, os.O_EXCL, 0o644)
        try:
            os.link(temporary, self.path(name))
        except FileExistsError:
            self._read(name)
            return False
        finally:
            os.unlink(temporary)
        self._note(name, address, owner)
        try:
            # No O_TRUNC: ext4 writes a file out when it is closed after having been emptied.
            files.write(self.path(f"last_reserved_ip.{number}"), name.encode(), 0, 0o644)
        except OSError:
            self.release(name)
            raise
        return True

    def last(self, number: int) -> Address | None:
        try:
            return ip_address(files.read(self.path(f"last_reserved_ip.{number}")).decode("ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def release(self, name: str) -> None:
        with suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(self.path(name))
        self._read(name)

    def release_all(self, names: Collection[str]) -> None:
        failed: list[str] = []
        for name in names:
            try:
                self.release(name)
            except OSError as e:
                failed.append(f"{name}: {e.strerror}")
        if failed:
            raise IOFailure(f"host-local: cannot release in {self.directory}", "; ".join(failed))

    def _read(self, name: str) -> None:
        if name[:1] not in "0123456789abcdef:":  # ip_address() refuses, but takes its time
            return
        try:
            address = ip_address(name)
        except ValueError:
            return
        if str(address) != name:
            return
        self._drop(name, address)
        try:
            # A FIFO must not hang us.
            self._note(name, address, files.read(self.path(name), os.O_NONBLOCK).strip())
        except FileNotFoundError:
            return
        except IsADirectoryError:
            self._note(name, address, b"")

    def _note(self, name: str, address: Address, owner: bytes) -> None:
        self.entries[name] = owner
        self.owners.setdefault(owner, set()).add(name)
        self.taken[address.version].add(int(address))

    def _drop(self, name: str, address: Address) -> None:
        owner = self.entries.pop(name, None)
        if owner is None:
            return
        self.owners[owner].remove(name)
        if not self.owners[owner]:
            del self.owners[owner]
        self.taken[address.version].discard(int(address))

    def _changed(self) -> set[str] | None:
        """Names of files that changed since the last call; None: nobody knows."""
        names: set[str] = set()
        while self.watch >= 0:
            try:
                data = os.read(self.watch, _EVENTS)
            except BlockingIOError:
                return names
            offset = 0
            while offset < len(data):
                _, mask, _, length = struct.unpack_from("iIII", data, offset)
                offset += 16 + length
                if mask & _IN_LOST:
                    return None
                names.add(os.fsdecode(data[offset - length : offset].rstrip(b"\0")))
            if len(data) < _EVENTS - _EVENT:
                return names
        return None


_stores: dict[str, Store] = {}
_stores_lock = threading.Lock()


@contextmanager
def locked(directory: str) -> Iterator[Store]:
    """The up-to-date store, alone among threads and processes. OSError becomes IOFailure."""
    try:
        while True:
            with _stores_lock:
                store = _stores.pop(directory, None) or Store(directory)
                _stores[directory] = store
                if len(_stores) > _STORES:
                    del _stores[next(iter(_stores))]
            with store.mutex:
                fcntl.flock(store.lock, fcntl.LOCK_EX)
                try:
                    if store.current():
                        store.sync()
                        yield store
                        return
                finally:
                    fcntl.flock(store.lock, fcntl.LOCK_UN)
            with _stores_lock:
                if _stores.get(directory) is store:
                    del _stores[directory]
    except OSError as e:
        raise IOFailure(f"host-local store {directory}: {e.strerror}", str(e)) from e


def _watch(directory: str) -> int:
    """A non-blocking inotify descriptor on the directory; -1 where the kernel gives none."""
    fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd >= 0 and _libc.inotify_add_watch(fd, os.fsencode(directory), _IN_EVENTS) < 0:
        os.close(fd)
        return -1
    return fd
