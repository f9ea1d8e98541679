"""The machine and the versions of a run, without host name and local paths."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.testbed import guest
from bench.testbed.node import PLUGINS

_ROOT = Path(__file__).resolve().parents[2]
_VERSION = re.compile(r"\d+(?:\.\d+)+\S*")


def describe(guests: bool) -> dict[str, Any]:
    """The keys machine, kernel, versions and accelerator of the schema.

    Without `guests` the accelerator is left out, since finding it boots a guest.
    """
    accelerator = ("", "no guest was run")
    if guests:
        accelerator = (guest.accelerator(), guest.accelerator_reason())
    return {
        "machine": _machine(),
        "kernel": platform.release(),
        "versions": _versions(),
        "accelerator": dict(zip(("name", "reason"), accelerator, strict=True)),
    }


def without_local_paths(text: str) -> str:
    """A text without the names of directories that exist on this machine only."""
    for private in (_ROOT, Path.home(), Path(tempfile.gettempdir()), Path("/dev/shm")):
        if private != private.parent:
            text = text.replace(f"{private}/", "")
    return text


def _machine() -> dict[str, Any]:
    lscpu = json.loads(_output(["lscpu", "--json"]) or '{"lscpu": []}')["lscpu"]
    fields = {each["field"].rstrip(":"): each["data"] for each in lscpu}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": fields.get("Model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": memory >> 20,
        "virtualised_by": fields.get("Hypervisor vendor", ""),
    }


def _versions() -> dict[str, Any]:
    git = ["git", "-C", str(_ROOT)]
    return {
        "vmlink": metadata.version("vmlink-cni"),
        "commit": _output([*git, "rev-parse", "--short=12", "HEAD"]).strip(),
        "dirty": bool(_output([*git, "status", "--porcelain"]).strip()),
        "python": platform.python_version(),
        "openvswitch": _version(["ovs-vswitchd", "--version"]),
        "qemu": _version(["qemu-system-x86_64", "--version"]),
        "iperf3": _version(["iperf3", "--version"]),
        "cni-plugins": _plugins(),
    }


def _plugins() -> str:
    """The package's version, since Debian's plugins do not know their own."""
    package = "containernetworking-plugins"
    packaged = _output(["dpkg-query", "-W", "-f", "${Version}", package])
    return packaged or _version([str(PLUGINS / "bridge")])


def _version(command: Sequence[str]) -> str:
    match = _VERSION.search(_output(command).partition("\n")[0])
    return match[0] if match else ""


def _output(command: Sequence[str]) -> str:
    """What a command prints; empty when it is missing or fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout or done.stderr
