"""The guard's program, loaded ahead of need, each copy with maps of its own."""

from __future__ import annotations

import errno as errnos
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache

from cni.errors import NotReady
from cni.kernel import bpf
from cni.kernel.guard import elf, maps
from cni.kernel.guard.values import CLOSED, KEY_SIZE, REASONS, Values
from cni.kernel.netlink import NetlinkError, refused

NAME = "vmlink_guard"
OBJECT = os.path.join(os.path.dirname(__file__), "guard.bpf.o")
_FIRST = bytes(4)  # the key of the only element of `conf`
_PRESENT = b"\1"
# Copies on the shelf, and at how many it is filled again: later than the ADDs that empty it, which
# would wait for the verifier on a node with few cores.
_AHEAD, _LOW = 32, 16
_PAUSE, _LEAST_PRIORITY = 0.02, 19  # seconds between two copies; nice(2)


@dataclass(frozen=True)
class Guard:
    """A loaded copy: descriptors of the program and of its maps by name, and the program's id."""

    id: int
    fd: int
    maps: dict[str, int]

    def put(self, values: Values) -> None:
        """Let pass what these values say, and what both they and the former ones say meanwhile.

        Raises NetlinkError.
        """
        wanted, present = values.keys(), set(maps.keys(self.maps["allowed"], KEY_SIZE))
        for key in wanted - present:
            maps.update(self.maps["allowed"], key, _PRESENT)
        maps.update(self.maps["conf"], _FIRST, values.conf())
        for key in present - wanted:
            maps.delete(self.maps["allowed"], key)

    def shut(self) -> None:
        """Let nothing pass until the next `put`. Raises NetlinkError."""
        maps.update(self.maps["conf"], _FIRST, CLOSED)
        for key in maps.keys(self.maps["allowed"], KEY_SIZE):
            maps.delete(self.maps["allowed"], key)

    def has(self, values: Values) -> bool:
        """Return whether these are the values. Raises NetlinkError."""
        conf = maps.look(self.maps["conf"], _FIRST, len(CLOSED))
        return conf == values.conf() and values.keys() == set(
            maps.keys(self.maps["allowed"], KEY_SIZE)
        )

    def drops(self) -> dict[str, int]:
        """Return how many frames were dropped, by reason. Raises NetlinkError."""
        counts = maps.sums(self.maps["drops"], 1 + len(REASONS))
        return dict(zip(REASONS, counts[1:], strict=True))

    def close(self) -> None:
        """Close the descriptors, once; what is attached stays."""
        if self.maps:
            os.close(self.fd)
            maps.close(self.maps)
            self.maps.clear()


@cache
def compiled() -> elf.Object:
    """Return the compiled program. Raises NotReady where vmlink was built without it."""
    try:
        with open(OBJECT, "rb") as f:
            return elf.read(f.read())
    except (OSError, elf.BadObject) as e:
        raise NotReady(f"the guard's program is not there: {e}; install vmlink again") from e


def load() -> Guard:
    """Load a copy that lets nothing pass. Raises NotReady or NetlinkError."""
    program, made = compiled(), dict[str, int]()
    try:
        for name, definition in program.maps.items():
            made[name] = maps.create(name, definition)
        fd = bpf.load_code(NAME, program.linked(made))
        return Guard(bpf.program(fd).id, fd, made)
    except BaseException:
        maps.close(made)
        raise


@contextmanager
def opened(prog_id: int) -> Iterator[Guard]:
    """Open a loaded copy by the program's id. Raises NotFound where it is gone, NetlinkError."""
    fd = bpf.program_fd(prog_id)
    try:
        found = _maps_of(fd)
    except BaseException:
        os.close(fd)
        raise
    guard = Guard(prog_id, fd, found)
    try:
        yield guard
    finally:
        guard.close()


def _maps_of(fd: int) -> dict[str, int]:
    if bpf.program(fd).name != NAME:
        raise refused(errnos.ENOENT, f"open bpf program {fd} as a guard")
    return maps.of_program(fd)


class Shelf:
    """Copies that are loaded before an ADD needs one: to load one takes milliseconds."""

    def __init__(self) -> None:
        self._ready: deque[Guard] = deque()
        self._lock = threading.Lock()
        self._filling = False

    def take(self) -> Guard:
        """Return a copy, which the caller closes. Raises NotReady or NetlinkError."""
        try:
            guard = self._ready.popleft()
        except IndexError:
            guard = load()
        self.refill()
        return guard

    def refill(self) -> None:
        """Load copies in a thread when few are left, unless one is at it."""
        with self._lock:
            if self._filling or len(self._ready) > _LOW:
                return
            self._filling = True
        threading.Thread(target=self._fill, name="vmlink-guards", daemon=True).start()

    def _fill(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_PRIORITY)
        # An ADD that finds none meets the same error and says it.
        with suppress(NotReady, NetlinkError):
            while len(self._ready) < _AHEAD:
                self._ready.append(load())
                time.sleep(_PAUSE)
        with self._lock:
            self._filling = False

    def clear(self) -> None:
        """Close all copies."""
        while self._ready:
            self._ready.popleft().close()


SHELF = Shelf()


@cache  # but not the exception: the kernel may be given what it lacks
def require() -> None:
    """Raise NotReady where this kernel cannot have the guard, or vmlink was built without."""
    try:
        load().close()
    except NetlinkError as e:
        raise NotReady(f"the kernel refuses the guard's program: {e.msg}") from e
