"""vmlinkd.yaml -> Settings. `conf/vmlinkd.yaml` documents every key."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from cni.errors import BadConfig


@dataclass(frozen=True)
class Settings:
    """`deadline` in seconds, for one request; `workers` serve that many requests at a time."""

    workers: int = 16
    deadline: float = 45
    log_level: str = "info"


_RANGES = {"workers": (1, 256), "deadline": (1, 600)}
_LEVELS = ("debug", "info", "warning", "error")


def load(path: Path | None) -> Settings:
    """Raises BadConfig, which names the file, the key and what is allowed."""
    if path is None:
        return Settings()
    try:
        data: Any = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, ValueError) as e:  # PyYAML makes dates of numbers
        raise BadConfig(f"{path}: cannot read: {e}") from e
    if data is None:  # nothing but comments
        return Settings()
    if not isinstance(data, dict):
        raise BadConfig(f"{path}: expected keys and values, found {data!r}")
    known = [f.name for f in fields(Settings)]
    for key, value in data.items():
        if key not in known:
            raise BadConfig(f"{path}: {key}: unknown key; known are {', '.join(known)}")
        _check(f"{path}: {key}", key, value)
    return Settings(**data)


def _check(where: str, key: str, value: Any) -> None:
    if key in _RANGES:
        low, high = _RANGES[key]
        number = isinstance(value, int) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            raise BadConfig(f"{where}: expected a number from {low} to {high}, found {value!r}")
    elif value not in _LEVELS:
        raise BadConfig(f"{where}: expected one of {', '.join(_LEVELS)}, found {value!r}")
