"""The store of `host-local` on disk: one network's directory, its lock and its files.

Each reservation is a file, and only its content says who has it. So the store is kept in memory,
and inotify(7) says which files to read again: an event is queued before the writer's system call
returns, and so before the writer gives back the lock. Where inotify fails, each call reads all.

Some file systems change without events (NFS). There an attachment that has an address already may
get a second one; no address is given out twice, because link(2) refuses a name that is taken, and
none is released for another, because a file is read again before it is removed.
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
_STORES = 32  # kept in memory; each has an inotify instance, of which a user may have 128
# IN_ONLYDIR | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
_IN_EVENTS = 0x01000000 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200
_EVENTS, _EVENT = 65536, 16 + 256  # bytes: what one read takes, and the largest event
_IN_LOST = 0x2000 | 0x4000 | 0x8000  # IN_UNMOUNT | IN_Q_OVERFLOW | IN_IGNORED
_libc = ctypes.CDLL(None, use_errno=True)


def old_owner_of(key: AttachmentKey) -> bytes:
    """The owner as host-local wrote it before 0.8, and still reads it: the container alone."""
    return key.container_id.strip().encode("utf-8", "surrogateescape")


def owner_of(key: AttachmentKey) -> bytes:
    """The owner of a reservation, as its file names it: container id and interface."""
    return old_owner_of(key) + b"\r\n" + key.ifname.encode("utf-8", "surrogateescape")


class Store:
    """One network's directory in memory. Its methods need the lock: see `locked`.

    `entries` has the owner of each address, `owners` the addresses of each owner, `taken` the
    addresses as numbers by IP version. Methods raise OSError.
    """

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
        # They are not closed when the store leaves the cache: another thread may wait for its lock.
        weakref.finalize(self, os.close, self.lock)
        if self.watch >= 0:
            weakref.finalize(self, os.close, self.watch)

    def path(self, name: str) -> str:
        """The path of a file in the directory."""
        return f"{self.directory}/{name}"

    def current(self) -> bool:
        """Whether the lock that is held is the file at its path: somebody may have replaced it."""
        try:
            return os.path.samestat(os.fstat(self.lock), os.stat(self.path("lock")))
        except FileNotFoundError:
            return False

    def sync(self) -> None:
        """Read the files that others have changed."""
        names = self._changed() if self.loaded else None
        if names is None:
            self.load()
            return
        self.loaded = False  # after an error half-way everything is read again
        for name in names:
            self._read(name)
        self.loaded = True

    def load(self) -> None:
        """Read all files."""
        self.loaded = False
        for owned in (self.entries, self.owners, self.taken[4], self.taken[6]):
            owned.clear()
        for name in os.listdir(self.directory):
            self._read(name)
        self.loaded = True

    def held(self, owner: bytes) -> list[str]:
        """The addresses that `owner` has, by their files as they are now."""
        for name in tuple(self.owners.get(owner, ())):
            self._read(name)
        return sorted(self.owners.get(owner, ()))

    def reserve(self, address: Address, owner: bytes, number: int) -> bool:
        """Reserve an address for `owner`, the last one given of range set `number`.

        Returns False if it is taken.
        """
        name, temporary = str(address), self.path(_TEMPORARY)
        # After a crash it may be a second link of a reservation, which must not be written to.
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
            # Without O_TRUNC: ext4 flushes a file that was emptied when it is closed.
            files.write(self.path(f"last_reserved_ip.{number}"), name.encode(), 0, 0o644)
        except OSError:
            self.release(name)
            raise
        return True

    def last(self, number: int) -> Address | None:
        """The address of range set `number` that was given last, None for none."""
        try:
            return ip_address(files.read(self.path(f"last_reserved_ip.{number}")).decode("ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def release(self, name: str) -> None:
        """Release an address; one that nobody has is no error."""
        with suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(self.path(name))
        self._read(name)

    def release_all(self, names: Collection[str]) -> None:
        """Release addresses, all that can be; raises IOFailure for the others."""
        failed: list[str] = []
        for name in names:
            try:
                self.release(name)
            except OSError as e:
                failed.append(f"{name}: {e.strerror}")
        if failed:
            raise IOFailure(f"host-local: cannot release in {self.directory}", "; ".join(failed))

    def _read(self, name: str) -> None:
        if name[:1] not in "0123456789abcdef:":  # ip_address() is slow to refuse
            return
        try:
            address = ip_address(name)
        except ValueError:
            return
        if str(address) != name:
            return
        self._drop(name, address)
        try:
            # Without O_NONBLOCK a FIFO of that name would block for ever.
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
        """The names of the files that changed since the last call, None if events were lost."""
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
    """The store of a directory, read anew and locked against threads and other programs.

    Raises IOFailure, also for an OSError of the block.
    """
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
    """A non-blocking inotify descriptor on the directory, -1 if the kernel refuses one."""
    fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd >= 0 and _libc.inotify_add_watch(fd, os.fsencode(directory), _IN_EVENTS) < 0:
        os.close(fd)
        return -1
    return fd
