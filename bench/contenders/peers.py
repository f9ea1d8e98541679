"""Further CNI plugins to measure, as `--peer TYPE=PATH[,conf.json]` names them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class PeerError(ValueError):
    """A --peer that cannot be used; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Peer:
    """A CNI plugin; `conf` has the keys of its network configuration that the user gave."""

    type: str
    path: Path
    conf: Mapping[str, Any] = field(default_factory=dict)


def parse(texts: tuple[str, ...]) -> list[Peer]:
    """Read the values of all --peer options. Raises PeerError."""
    peers = [_parse(text) for text in texts]
    types = [peer.type for peer in peers]
    for each in types:
        if types.count(each) > 1:
            raise PeerError(f"--peer {each}: is there twice; give each TYPE once")
    return peers


def _parse(text: str) -> Peer:
    kind, separator, rest = text.partition("=")
    path, _, conf = rest.partition(",")
    if not separator or not path:
        raise PeerError(f"--peer {text}: expected TYPE=PATH[,conf.json]")
    if not _TYPE.fullmatch(kind):
        raise PeerError(f"--peer {text}: TYPE may have letters, digits and _ . -, not {kind!r}")
    if not Path(path).is_file() or not os.access(path, os.X_OK):
        raise PeerError(f"--peer {text}: {path} is no program; give the path of the plugin")
    return Peer(kind, Path(path).absolute(), _conf(text, kind, conf) if conf else {})


def _conf(text: str, kind: str, path: str) -> dict[str, Any]:
    try:
        conf = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as e:
        raise PeerError(f"--peer {text}: {path} cannot be read as JSON: {e}") from e
    if not isinstance(conf, dict):
        raise PeerError(f"--peer {text}: {path}: expected an object, {{...}}")
    if "plugins" in conf:
        raise PeerError(f"--peer {text}: {path} is a list of plugins; give one entry of it")
    if conf.get("type", kind) != kind:
        raise PeerError(f"--peer {text}: {path} has type {conf['type']!r}; name that as TYPE")
    return conf
