"""A wrapper around an OCI runtime that adds vmlink-hook to its sandboxes.

It is for runtimes under CRI, which do not read hooks.d for sandboxes. Sources: OCI runtime
specification, "Configuration", hooks; runc(8), whose command line crun, youki and Kata Containers
share.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cni import files
from cni.errors import BadEnvironment, CannotDecode, VmlinkError
from cni.plugins import oci

STAGES = ("createRuntime", "poststop")
_SECONDS = 60  # more than vmlinkd's deadline
# Options before the verb that have a value in the next argument (runc 1.1 and crun 1.8).
_VALUED = frozenset(
    "--cgroup-manager --criu --log --log-format --log-level --root --rootless".split()
)


def execute(command: Sequence[str], hook: Sequence[str]) -> None:
    """Execute an OCI runtime's command in place of this process, with the hook in its bundle.

    `hook` is a command, to which the stage is appended; only `create` and `run` have a bundle.
    Raises VmlinkError.
    """
    bundle = bundle_of(command[1:])
    if bundle is not None:
        add_hooks(bundle / oci.CONFIG, hook)
    try:
        os.execvp(command[0], list(command))
    except OSError as e:
        raise VmlinkError(f"cannot execute {command[0]}: {e.strerror}") from e


def bundle_of(arguments: Sequence[str]) -> Path | None:
    """The bundle in a runtime's command line, None unless that makes a container."""
    rest = iter(arguments)
    for argument in rest:
        if argument in _VALUED:
            next(rest, "")
        elif not argument.startswith("-"):
            return _bundle_option(list(rest)) if argument in ("create", "run") else None
    return None


def _bundle_option(arguments: Sequence[str]) -> Path:
    for n, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("-b", "--bundle", "-bundle"):
            return Path(value if equals else "".join(arguments[n + 1 : n + 2]))
    return Path()


def add_hooks(path: Path, hook: Sequence[str]) -> None:
    """Add the hook to a config.json, unless it is there already. Raises IOFailure.

    A file that is no configuration is left as it is, for the runtime to refuse.
    """
    try:
        config = oci.read(path)
    except (BadEnvironment, CannotDecode):
        return
    if oci.joins_a_sandbox(oci.annotations_of(config)):
        return
    hooks = {} if config.get("hooks") is None else config["hooks"]
    if not isinstance(hooks, dict):
        return
    added = [stage for stage in STAGES if _add(hooks, stage, hook)]
    if added:
        mode = path.stat().st_mode & 0o777
        files.replace(path, json.dumps({**config, "hooks": hooks}).encode(), mode)


def _add(hooks: dict[str, Any], stage: str, hook: Sequence[str]) -> bool:
    entry = {"path": hook[0], "args": [*hook, stage], "timeout": _SECONDS}
    present = hooks.get(stage) or []
    if not isinstance(present, list) or any(_same(other, entry) for other in present):
        return False
    hooks[stage] = [*present, entry]
    return True


def _same(other: Any, entry: dict[str, Any]) -> bool:
    return isinstance(other, dict) and all(other.get(k) == entry[k] for k in ("path", "args"))
