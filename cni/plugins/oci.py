"""What OCI runtimes say about a container: a hook's state on stdin, and the bundle's config.json.

Only what is needed is read, because runtimes differ: Kata Containers leaves `ociVersion` and
`status` empty and gives the hypervisor's pid.

Source: OCI runtime specification, "State" and "Configuration".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cni.errors import BadEnvironment, CannotDecode
from cni.spec.request import check_container_id

CONFIG = "config.json"
LIMIT = 16 << 20  # bytes
# How containerd's CRI and CRI-O mark the containers that join a pod's sandbox.
_KINDS = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")


@dataclass(frozen=True)
class Container:
    """A container with its namespace, a path; "" if it has none of its own."""

    id: str
    netns: str
    annotations: Mapping[str, str]


def identity(state: Mapping[str, Any]) -> str:
    """The container's id, which is safe in a path. Raises BadEnvironment or CannotDecode."""
    name = state.get("id")
    if not isinstance(name, str) or not name:
        raise CannotDecode(f"state: id: expected the container's id, found {name!r}")
    check_container_id(name, "state: id")
    return name


def container(state: Mapping[str, Any]) -> Container:
    """Read a hook's state. Raises BadEnvironment or CannotDecode when something is missing."""
    config = _bundle_config(state)
    known = annotations_of(config) | annotations_of(state)
    return Container(identity(state), _netns(state, config), known)


def decode(where: str, data: bytes) -> dict[str, Any]:
    """Decode a JSON object; `where` names its source in the error. Raises CannotDecode."""
    if len(data) > LIMIT:
        raise CannotDecode(f"{where}: has more than {LIMIT} bytes")
    try:
        decoded = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise CannotDecode(f"{where}: not JSON: {e}") from e
    if not isinstance(decoded, dict):
        raise CannotDecode(f"{where}: expected an object, found {type(decoded).__name__}")
    return decoded


def read(path: Path) -> dict[str, Any]:
    """Read a file with a JSON object. Raises BadEnvironment or CannotDecode."""
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except OSError as e:
        raise BadEnvironment(f"cannot read {path}: {e.strerror}") from e
    return decode(str(path), data)


def annotations_of(data: Mapping[str, Any]) -> dict[str, str]:
    """The annotations of a state or a config.json; {} for none."""
    annotations = data.get("annotations")
    if not isinstance(annotations, dict):
        return {}
    return {k: str(v) for k, v in annotations.items()}


def joins_a_sandbox(known: Mapping[str, str]) -> bool:
    """Whether the container is one of a pod, whose network belongs to the pod's sandbox."""
    return any(known.get(kind) == "container" for kind in _KINDS)


def _bundle_config(state: Mapping[str, Any]) -> dict[str, Any]:
    """The bundle's config.json; {} without a bundle, where the pid may be enough."""
    bundle = state.get("bundle")
    path = Path(bundle if isinstance(bundle, str) else "", CONFIG)
    return read(path) if path.is_absolute() and "\0" not in str(path) and path.is_file() else {}


def _netns(state: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The path of the container's namespace, "" if it has none of its own.

    The bundle counts before the pid, which may be a hypervisor's in another namespace.
    """
    linux = config.get("linux")
    if isinstance(linux, dict):
        listed = linux.get("namespaces") or []
        own = [n for n in listed if isinstance(n, dict) and n.get("type") == "network"]
        if not own:
            return ""
        if path := own[0].get("path"):
            return _absolute(path)
    pid = state.get("pid")
    if isinstance(pid, int) and not isinstance(pid, bool) and pid > 0:
        return f"/proc/{pid}/ns/net"
    raise BadEnvironment(f"state: neither bundle/{CONFIG} nor pid leads to a network namespace")


def _absolute(path: Any) -> str:
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        raise BadEnvironment(
            f"{CONFIG}: linux.namespaces: path: expected an absolute path, found {path!r}"
        )
    return path
