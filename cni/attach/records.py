"""One record per attachment, a file below the run directory.

It is a line of JSON before the first step (an intent) and, when the last step is done, a second
line with what came of the steps. A second line that is cut says that the ADD was not answered. /run
is a tmpfs, so a reboot clears the records together with the links that they describe.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cni import files
from cni.attach import former
from cni.attach.facts import Facts
from cni.attach.plan import IncoherentPlan, Plan
from cni.errors import AttachmentExists, IOFailure
from cni.spec.types import AttachmentKey

log = logging.getLogger("vmlink")

FORMAT = 2  # of records and of prepared ports
_SECOND_LINE = ("facts", "result", "device")
_FOREIGN = (KeyError, TypeError, AttributeError, IncoherentPlan)


@dataclass
class Record:
    """What vmlinkd knows of one attachment.

    `intent` is true until the ADD has succeeded. `stdin` and `env` are the ADD's own: an IPAM
    plugin needs them to release its addresses. `steps` and `facts` are JSON; `plan` and
    `known_facts` read them. `port` is the pool's, as it was taken. `begun` is when, in ns of the
    monotonic clock; 0 in records of format 1.
    """

    container_id: str
    ifname: str
    network: str
    mode: str
    uplink: str
    steps: dict[str, Any]
    netns_path: str
    netns_identity: tuple[int, int]
    stdin: str
    env: dict[str, str]
    format: int = FORMAT
    begun: int = field(default_factory=time.monotonic_ns)
    intent: bool = True
    facts: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)
    port: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> AttachmentKey:
        """The key of the attachment, with the prepared port that it has."""
        return AttachmentKey(self.container_id, self.ifname, self.port.get("id", ""))

    @property
    def order(self) -> tuple[int, list[str | int]]:
        """The place among a container's NICs: as attached, and eth10 after eth9."""
        return self.begun, natural(self.ifname)

    def plan(self) -> Plan | None:
        """Return the plan; None for one that this version of vmlink does not know."""
        return read_plan(self.steps, f"the record of {self.key}")

    def known_facts(self) -> Facts:
        """Return the facts; those of another version count as none."""
        try:
            return Facts.from_json(self.facts)
        except _FOREIGN as e:
            log.warning("the record of %s has facts of another version: %r", self.key, e)
            return Facts()


def natural(name: str) -> list[str | int]:
    """Return what a name is sorted by, so that eth10 comes after eth9."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if n % 2 else part for n, part in enumerate(parts)]


def read_plan(steps: dict[str, Any], where: str) -> Plan | None:
    """Return a stored plan; None, with a warning, for one that this version does not know."""
    try:
        return Plan.from_json(steps)
    except _FOREIGN as e:
        log.warning("%s has a plan of another version of vmlink: %r", where, e)
        return None


class Store:
    """The records of one node. Callers hold the attachment's lock around a write."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory

    def create(self) -> None:
        """Make the directory if it is not there."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def begin(self, record: Record) -> None:
        """Write the first line. Raises AttachmentExists when there is a record, IOFailure."""
        path = self._path(record.key)
        first = {k: v for k, v in vars(record).items() if k not in _SECOND_LINE or v}
        try:
            files.write(path, _encode(first), os.O_NOFOLLOW | os.O_EXCL, 0o600)
        except FileExistsError as e:
            raise AttachmentExists(f"{record.key} is attached already; DEL comes first") from e
        except OSError as e:
            with suppress(OSError):
                os.unlink(path)
            raise IOFailure(f"state: cannot write {path}: {e.strerror}") from e

    def finish(self, record: Record) -> None:
        """Write the second line: the ADD has succeeded. Raises IOFailure and leaves an intent."""
        path = self._path(record.key)
        second = {name: getattr(record, name) for name in _SECOND_LINE}
        try:
            files.append(path, b"\n" + _encode({"intent": False, **second}))
        except OSError as e:
            raise IOFailure(f"state: cannot write {path}: {e.strerror}") from e
        record.intent = False

    def load(self, key: AttachmentKey) -> Record | None:
        """Return the record; None for none, and for a file that is not a record."""
        return self._read(self._path(key))

    def remove(self, key: AttachmentKey) -> None:
        """Remove the record if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(self._path(key))

    def all(self) -> Iterator[Record]:
        """Yield every record of the node."""
        for path in sorted(self._dir.glob("*.json")):
            if record := self._read(str(path)):
                yield record

    def _path(self, key: AttachmentKey) -> str:
        return f"{self._dir}/{key.digest}.json"

    def _read(self, path: str) -> Record | None:
        try:
            first, _, second = files.read(path).partition(b"\n")
            data = former.upgraded({**json.loads(first), **_whole(second)})
            return Record(**{**data, "netns_identity": tuple(data["netns_identity"])})
        except FileNotFoundError:
            return None
        except OSError as e:
            raise IOFailure(f"state: cannot read {path}: {e.strerror}") from e
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            log.warning("state: %s is not a record (%s); DEL plans again without it", path, e)
            return None


def _whole(line: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError:
        return {}


def _encode(data: dict[str, Any]) -> bytes:
    return json.dumps(data).encode()
