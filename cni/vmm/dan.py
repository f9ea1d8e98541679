"""The files of directly attachable networks: one for a sandbox, an entry in it for each NIC.

Kata reads them and removes none. Writers of several NICs take turns by a lock on the directory,
and readers see the old file or the new one.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cni import files
from cni.errors import AttachmentExists, IOFailure
from cni.vmm.formats import kata

Entry = dict[str, Any]


def path_of(directory: Path, container: str) -> Path:
    return directory / f"{container}.json"


def put(path: Path, netns: str, entry: Entry) -> None:
    """Raises AttachmentExists when another NIC has the name, IOFailure."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with _locked(path.parent):
            others = [e for e in _entries(path) if source(e) != source(entry)]
            if any(e.get("name") == entry["name"] for e in others):
                raise AttachmentExists(f"{path}: has another NIC {entry['name']}; DEL comes first")
            _write(path, netns, [*others, entry])
    except OSError as e:
        raise IOFailure(f"dan_dir: cannot write {path}: {e.strerror}") from e


def drop(path: Path, mine: str) -> None:
    """Remove the entry whose device is `mine`, and the file with the last one."""
    try:
        with _locked(path.parent):
            try:
                found = _entries(path)
            except IOFailure:  # of use to nobody, and nobody else removes it
                path.unlink()
                return
            left = [e for e in found if source(e) != mine]
            if found and not left:
                path.unlink()
            elif left != found:
                _write(path, json.loads(path.read_text())["netns"], left)
    except FileNotFoundError:
        return


def find(path: Path, mine: str) -> Entry | None:
    return next((e for e in _entries(path) if source(e) == mine), None)


def source(entry: Entry) -> str:
    """What the entry's NIC is: the tap's name, the socket's path."""
    device = entry.get("device", {})
    return str(device.get("tap_name") or device.get("path") or "")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _entries(path: Path) -> list[Entry]:
    try:
        return list(json.loads(path.read_text())["devices"])
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as e:
        raise IOFailure(f"dan_dir: {path} is not a DAN file ({e!r}); remove it") from e


def _write(path: Path, netns: str, entries: list[Entry]) -> None:
    entries = sorted(entries, key=lambda e: str(e.get("name")))
    data = json.dumps(kata.dan(netns, entries)).encode() + b"\n"
    files.write_and_rename(str(path.with_suffix(".tmp")), str(path), data, os.O_TRUNC, 0o666)
