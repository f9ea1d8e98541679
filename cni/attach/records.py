"""One record per attachment under the run directory: a line of JSON before the first step (an
intent), and behind it, when the last is done, a second one with what the steps have found.

A second line that is cut says that the ADD was not answered. /run is a tmpfs, so a reboot clears
the records together with the links that they describe.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cni import files
from cni.errors import AttachmentExists, IOFailure
from cni.spec.types import AttachmentKey

log = logging.getLogger("vmlink")

_FOUND = ("facts", "result", "device")


@dataclass
class Record:
    """`intent` is true until the ADD has succeeded. `stdin` and `env` are the ADD's own: what an
    IPAM plugin needs to release its addresses. `kit` is the pool's, as it was taken."""

    container_id: str
    ifname: str
    network: str
    mode: str
    uplink: str
    plan: dict[str, Any]
    netns_path: str
    netns_identity: tuple[int, int]
    stdin: str
    env: dict[str, str]
    intent: bool = True
    facts: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)
    kit: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> AttachmentKey:
        return AttachmentKey(self.container_id, self.ifname, self.kit.get("id", ""))


class Store:
    """The records of one node. Callers hold the attachment's lock around a write."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory

    def create(self) -> None:
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def begin(self, record: Record) -> None:
        """The first line. Raises AttachmentExists when there is a record already, IOFailure."""
        path = self._path(record.key)
        try:
            files.write(path, _encode(vars(record)), os.O_NOFOLLOW | os.O_EXCL, 0o600)
        except FileExistsError as e:
            raise AttachmentExists(f"{record.key} is attached already; DEL comes first") from e
        except OSError as e:
            with suppress(OSError):
                os.unlink(path)
            raise IOFailure(f"state: cannot write {path}: {e.strerror}") from e

    def finish(self, record: Record) -> None:
        """The second line: the ADD has succeeded. Raises IOFailure; an intent is left then."""
        path = self._path(record.key)
        found = {name: getattr(record, name) for name in _FOUND}
        try:
            files.append(path, b"\n" + _encode({"intent": False, **found}))
        except OSError as e:
            raise IOFailure(f"state: cannot write {path}: {e.strerror}") from e
        record.intent = False

    def load(self, key: AttachmentKey) -> Record | None:
        return self._read(self._path(key))

    def remove(self, key: AttachmentKey) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._path(key))

    def all(self) -> Iterator[Record]:
        for path in sorted(self._dir.glob("*.json")):
            if record := self._read(str(path)):
                yield record

    def _path(self, key: AttachmentKey) -> str:
        return f"{self._dir}/{key.digest}.json"

    def _read(self, path: str) -> Record | None:
        try:
            first, _, second = files.read(path).partition(b"\n")
            data = json.loads(first)
            data |= _whole(second)
            return Record(**{**data, "netns_identity": tuple(data["netns_identity"])})
        except FileNotFoundError:
            return None
        except OSError as e:
            raise IOFailure(f"state: cannot read {path}: {e.strerror}") from e
        except (ValueError, TypeError, KeyError) as e:
            log.warning("state: %s is not a record (%s); DEL plans again without it", path, e)
            return None


def _whole(line: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError:
        return {}


def _encode(data: dict[str, Any]) -> bytes:
    return json.dumps(data).encode()
