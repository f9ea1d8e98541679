"""Kata's files of directly attachable networks (DAN): one a sandbox, with an entry for each NIC.

Kata reads them and never removes one. ADDs of several NICs take turns by a lock on the directory,
and a reader sees the old file or the new one.

Source: kata-containers, docs/how-to/how-to-use-dan.md; the format is in `cni.vmm.formats.kata`.
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
    """The file of a sandbox, by its container id."""
    return directory / f"{container}.json"


def put(path: Path, entry: Entry) -> None:
    """Add the entry of a NIC behind the others, or replace the one of the same device.

    Raises AttachmentExists when another NIC has the name, IOFailure.
    """
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with _locked(path.parent):
            netns, entries = _read(path)
            others = [e for e in entries if source(e) != source(entry)]
            if any(e.get("name") == entry["name"] for e in others):
                raise AttachmentExists(f"{path}: has another NIC {entry['name']}; DEL comes first")
            _write(path, netns, [*others, entry])
    except OSError as e:
        raise IOFailure(f"dan_dir: cannot write {path}: {e.strerror}") from e


def drop(path: Path, mine: str) -> None:
    """Remove the entry of the device `mine`, see `source`, and with the last entry the file.

    A file that cannot be read goes whole. Raises OSError.
    """
    try:
        with _locked(path.parent):
            try:
                netns, entries = _read(path)
            except IOFailure:  # Kata cannot read it either, and nobody else removes it
                path.unlink()
                return
            left = [e for e in entries if source(e) != mine]
            if entries and not left:
                path.unlink()
            elif left != entries:
                _write(path, netns, left)
    except FileNotFoundError:
        return


def find(path: Path, mine: str) -> Entry | None:
    """The entry of the device `mine`, None for none. Raises IOFailure."""
    return next((e for e in _read(path)[1] if source(e) == mine), None)


def source(entry: Entry) -> str:
    """The device of an entry: the name of its tap, or the path of its socket."""
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


def _read(path: Path) -> tuple[str | None, list[Entry]]:
    """Return the namespace and the entries of a file. Raises IOFailure."""
    try:
        data = json.loads(path.read_text())
        return data.get("netns"), list(data["devices"])
    except FileNotFoundError:
        return None, []
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise IOFailure(f"dan_dir: {path} is not a DAN file ({e!r}); remove it") from e


def _write(path: Path, netns: str | None, entries: list[Entry]) -> None:
    data = json.dumps(kata.dan(entries, netns)).encode() + b"\n"
    files.write_and_rename(str(path.with_suffix(".tmp")), str(path), data, os.O_TRUNC, 0o666)
