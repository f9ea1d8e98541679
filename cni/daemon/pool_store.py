"""Prepared ports on disk, below the run directory.

    pool/NETWORK@MODE/pool.json      the pool's numbers, and the network's configuration
    pool/NETWORK@MODE/ID.json        a prepared port, an intent until it is ready

A port that a pod has is in the attachment's record instead.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cni import files
from cni.attach import former
from cni.attach.facts import Facts
from cni.attach.plan import Plan
from cni.attach.records import FORMAT, read_plan
from cni.spec.types import AttachmentKey

log = logging.getLogger("vmlink")

_POOL = "pool.json"


@dataclass(eq=False)
class PreparedPort:
    """A port without a pod: `prepare` is that half of a plan, `facts` what came of it, as JSON.

    It is `ready` once the switch has it. `id` are twelve hexadecimal digits.
    """

    id: str
    prepare: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)
    ready: bool = False
    format: int = FORMAT

    @property
    def key(self) -> AttachmentKey:
        """The key under which the port waits."""
        return AttachmentKey.of_prepared(self.id)

    @cached_property
    def plan(self) -> Plan:
        """The steps that made it. Raises KeyError, TypeError or IncoherentPlan."""
        return Plan.from_json({"prepare": self.prepare, "bind": []})

    def known_facts(self) -> Facts:
        """Return what came of the steps. Raises KeyError or TypeError."""
        return Facts.from_json(self.facts)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the port's file."""
        keys = ("id", "prepare", "facts", "ready", "format")
        return {key: getattr(self, key) for key in keys}


class PoolFiles:
    """The files of one pool."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load(self) -> tuple[dict[str, Any], list[PreparedPort]]:
        """Make the directory; return the pool's numbers and the ports of a former process."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self.directory.glob(".*"):  # files.replace was cut
            left.unlink(missing_ok=True)
        paths = [p for p in sorted(self.directory.glob("*.json")) if p.name != _POOL]
        ports = [port for path in paths if (port := _read_port(path))]
        return read_json(self.directory / _POOL), ports

    def save(self, port: PreparedPort) -> None:
        """Write the port's file. Raises IOFailure."""
        _replace(self._path(port.id), port.to_json())

    def forget(self, port: PreparedPort) -> None:
        """Remove the port's file if it is there."""
        self._path(port.id).unlink(missing_ok=True)

    def has(self, port_id: str) -> bool:
        """Return whether there is a file of the port."""
        return self._path(port_id).exists()

    def write_numbers(self, numbers: dict[str, Any]) -> None:
        """Write what vmlinkctl shows and the next process reads. Raises IOFailure."""
        _replace(self.directory / _POOL, numbers)

    def remove(self) -> None:
        """Remove the directory of a pool without ports. Raises OSError."""
        (self.directory / _POOL).unlink(missing_ok=True)
        self.directory.rmdir()

    def _path(self, port_id: str) -> Path:
        return self.directory / f"{port_id}.json"


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; {} for none, and with a warning for anything else."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        log.warning("pool: cannot read %s: %s", path, e)
        return {}
    return data if isinstance(data, dict) else {}


def port_of(data: dict[str, Any]) -> PreparedPort:
    """Return a prepared port from JSON of any format that is known. Raises TypeError, KeyError."""
    return PreparedPort(**former.port(data))


def _replace(path: Path, data: dict[str, Any]) -> None:
    files.replace(path, json.dumps(data).encode(), 0o600)


def _read_port(path: Path) -> PreparedPort | None:
    try:
        port = port_of(read_json(path))
    except (TypeError, KeyError, AttributeError) as e:
        log.warning("pool: %s is not a prepared port (%r) and is removed; its port goes", path, e)
        port = None
    if port and read_plan({"prepare": port.prepare, "bind": []}, str(path)):
        return port
    path.unlink(missing_ok=True)
    return None
