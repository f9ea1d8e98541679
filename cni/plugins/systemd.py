"""What `vmlinkctl install` and `uninstall` ask of the systemd that runs this node.

Sources: systemctl(1), sd_booted(3).
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from pathlib import Path

from cni.errors import VmlinkError

SERVICE, SOCKET = "vmlinkd.service", "vmlinkd.socket"
_BOOTED = Path("/run/systemd/system")


def start(root: Path, paths: Collection[str]) -> None:
    """Start vmlinkd if its units are among the `paths` that were installed on the running system.

    Raises VmlinkError when it does not start; it is tried again by systemd.
    """
    if _has_units(root, paths):
        _systemctl("daemon-reload")
        _systemctl("start", SOCKET, SERVICE)


def stop(root: Path, paths: Collection[str]) -> None:
    """Stop vmlinkd if its units are among the `paths` that are to go. Raises VmlinkError."""
    if _has_units(root, paths):
        _systemctl("stop", SOCKET, SERVICE)


def forget(root: Path, paths: Collection[str]) -> None:
    """Let systemd notice that the units are gone. Raises VmlinkError."""
    if _has_units(root, paths):
        _systemctl("daemon-reload")


def _has_units(root: Path, paths: Collection[str]) -> bool:
    return (
        root == Path("/")
        and _BOOTED.is_dir()
        and any(Path(path).name in (SERVICE, SOCKET) for path in paths)
    )


def _systemctl(*arguments: str) -> None:
    command = ["systemctl", *arguments]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as e:
        raise VmlinkError("systemctl is not there; run it from the package systemd") from e
    except subprocess.CalledProcessError as e:
        said = e.stderr.strip() or f"exit status {e.returncode}"
        raise VmlinkError(f"{' '.join(command)}: {said}") from e
