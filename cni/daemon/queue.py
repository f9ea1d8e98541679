"""The queue of DELs that came while vmlinkd did not run; cni/spec/protocol.py has its format."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cni.daemon import handler
from cni.daemon.engine import Engine
from cni.errors import VmlinkError
from cni.kernel.netns import descriptor
from cni.spec import protocol

log = logging.getLogger("vmlink")

_NO_RETRY = (1, 2, 3, 4, 6, 7)  # the specification's codes for a request that is itself wrong


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep clients from adding to the queue: they wait for the lock, then try to connect again.

    Makes `directory`, mode 0700, if it is missing. Raises OSError.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def replay(engine: Engine, directory: Path, seconds: float) -> None:
    """Serve the queued DELs, oldest first, each for `seconds` at most. Call it `locked`.

    A DEL that fails stays for the next start, unless the request itself is wrong: that is logged
    and dropped.
    """
    for unfinished in directory.glob("*.tmp"):
        unfinished.unlink(missing_ok=True)
    for path in sorted(directory.glob("*.del")):
        if _serve(engine, path, seconds):
            path.unlink()


def _serve(engine: Engine, path: Path, seconds: float) -> bool:
    """Tell whether the file is of no further use."""
    try:
        frame = protocol.decode_payload(path.read_bytes())
    except VmlinkError as e:
        log.warning("the queued file %s is not a request (%s) and is removed", path, e.msg)
        return True
    fd = descriptor(frame.env.get("CNI_NETNS", ""))
    answer = handler.answer(engine, frame, fd, seconds, lambda: False)
    answer.log()
    return answer.code in (0, *_NO_RETRY)
