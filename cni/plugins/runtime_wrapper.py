"""An OCI runtime whose sandboxes get vmlink-hook, for runtimes under CRI: hooks.d does not reach
the sandboxes there.

Source: OCI runtime specification, "Configuration", hooks; runc(8), whose command line crun, youki
and Kata Containers share.
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
# Options before the verb whose value is the next word (runc 1.1 and crun 1.8).
_VALUED = frozenset(
    "--cgroup-manager --criu --log --log-format --log-level --root --rootless".split()
)


def execute(command: Sequence[str], hook: Sequence[str]) -> None:
    """Add `hook` (a command, to which the stage is appended) to the bundle of a create or run,
    and become the runtime. Raises VmlinkError."""
    bundle = bundle_of(command[1:])
    if bundle is not None:
        add_hooks(bundle / oci.CONFIG, hook)
    try:
        os.execvp(command[0], list(command))
    except OSError as e:
        raise VmlinkError(f"cannot execute {command[0]}: {e.strerror}") from e


def bundle_of(arguments: Sequence[str]) -> Path | None:
    """The bundle of a runtime's command line; None unless it makes a container."""
    words = iter(arguments)
    for word in words:
        if word in _VALUED:
            next(words, "")
        elif not word.startswith("-"):
            return _bundle_option(list(words)) if word in ("create", "run") else None
    return None


def _bundle_option(arguments: Sequence[str]) -> Path:
    for n, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name in ("-b", "--bundle", "-bundle"):
            return Path(value if equals else "".join(arguments[n + 1 : n + 2]))
    return Path()


def add_hooks(path: Path, hook: Sequence[str]) -> None:
    """Once, whatever the runtime does with the file. Raises IOFailure.

    What is no configuration is left for the runtime to refuse.
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
