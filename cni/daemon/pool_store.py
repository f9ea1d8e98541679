"""Kits on disk: what has been prepared for pods to come, below the run directory.

    pool/NETWORK@MODE/pool.json      how the pool does, and the network's configuration
    pool/NETWORK@MODE/KIT.json       a kit, an intent until it is ready

A kit that a pod has is in the attachment's record instead.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cni import files
from cni.attach.plan import Plan, Step
from cni.config.settings import PoolSize
from cni.spec.types import AttachmentKey

log = logging.getLogger("vmlink")

_POOL = "pool.json"
_COUNTS = ("made", "given", "returned", "thrown_away")


@dataclass(eq=False)
class Kit:
    """`prepare` is that half of a plan, `facts` what it found. `ready` once the switch knows it."""

    id: str
    prepare: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)
    ready: bool = False

    @property
    def key(self) -> AttachmentKey:
        return AttachmentKey.of_kit(self.id)

    @cached_property
    def plan(self) -> Plan:
        return Plan(tuple(Step.from_json(step) for step in self.prepare), ())

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "prepare": self.prepare, "facts": self.facts, "ready": self.ready}


@dataclass(eq=False)
class Pool:
    """Of one network and mode. `size` is None when the settings no longer name it; `conf` is empty
    until the network is known. Kits are `found` (of a former process), `ready` or `doomed`."""

    directory: Path
    size: PoolSize | None
    conf: dict[str, Any] = field(default_factory=dict)
    found: list[Kit] = field(default_factory=list)
    ready: deque[Kit] = field(default_factory=deque)
    doomed: list[Kit] = field(default_factory=list)
    coming: int = 0  # being made, or on their way back
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    error: str = ""

    @property
    def name(self) -> tuple[str, str]:
        """Network and mode."""
        network, _, mode = self.directory.name.partition("@")
        return network, mode

    def room(self) -> int:
        """For so many kits more."""
        return self.size.size - len(self.ready) - len(self.found) - self.coming if self.size else 0

    def open(self) -> None:
        """Read what a former process left."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self.directory.glob(".*"):  # files.replace was cut
            left.unlink(missing_ok=True)
        told = read_json(self.directory / _POOL)
        self.conf = told.get("conf", {})
        self.counts |= {name: told.get(name, 0) for name in _COUNTS}
        for path in sorted(self.directory.glob("*.json")):
            if path.name != _POOL and (kit := _kit(path)):
                (self.found if kit.ready else self.doomed).append(kit)

    def save(self, kit: Kit) -> None:
        """Raises IOFailure."""
        _replace(self._path(kit.id), kit.to_json())

    def forget(self, kit: Kit) -> None:
        self._path(kit.id).unlink(missing_ok=True)

    def has(self, kit: str) -> bool:
        return self._path(kit).exists()

    def tell(self) -> None:
        """For vmlinkctl, and for the next process. Raises IOFailure."""
        network, mode = self.name
        told: dict[str, Any] = {"network": network, "mode": mode}
        told |= vars(self.size) if self.size else {"size": 0, "refill_below": 0}
        told |= {"ready": len(self.ready), **self.counts, "error": self.error, "conf": self.conf}
        _replace(self.directory / _POOL, told)

    def close(self) -> None:
        """It is empty, and the settings do not name it."""
        (self.directory / _POOL).unlink(missing_ok=True)
        self.directory.rmdir()

    def _path(self, kit: str) -> Path:
        return self.directory / f"{kit}.json"


def read_json(path: Path) -> dict[str, Any]:
    """Empty, with a warning, for a file that is not an object of JSON; empty for none."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        log.warning("pool: cannot read %s: %s", path, e)
        return {}
    return data if isinstance(data, dict) else {}


def _replace(path: Path, data: dict[str, Any]) -> None:
    files.replace(path, json.dumps(data).encode(), 0o600)


def _kit(path: Path) -> Kit | None:
    try:
        kit = Kit(**read_json(path))
        assert kit.plan.prepare is not None  # decoded, whatever version of vmlink wrote it
        return kit
    except (TypeError, KeyError) as e:
        log.warning("pool: %s is not a kit (%r) and is removed; its port goes", path, e)
        path.unlink(missing_ok=True)
        return None
