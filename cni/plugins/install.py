"""vmlinkctl install and uninstall: vmlink's files on a node, and exactly those taken back.

A manifest, /var/lib/vmlink/installed.json, has each file with the digest of what was put there and
each directory that had to be made. What was changed since is its owner's: it is left and named.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cni import files
from cni.errors import IOFailure, VmlinkError
from cni.plugins.node_files import PARTS, File, payload

MANIFEST = "/var/lib/vmlink/installed.json"


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    put = verbs.add_parser("install", help="put vmlink's files in their places on this node")
    put.set_defaults(action=install)
    take = verbs.add_parser("uninstall", help="take back what install put there")
    take.set_defaults(action=uninstall)
    for verb in (put, take):
        verb.add_argument("--root", type=Path, default=Path("/"), help="of the node's file system")
        verb.add_argument("--dry-run", action="store_true", help="only say what would be done")
    put.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    places = {
        "--bin-dir": (os.path.dirname(os.path.abspath(sys.argv[0])), "vmlinkd and vmlink-hook"),
        "--cni-bin-dir": ("/opt/cni/bin", "CNI plugins"),
        "--cni-conf-dir": ("/etc/cni/net.d", "CNI networks"),
        "--unit-dir": ("/etc/systemd/system", "systemd's units"),
        "--hooks-dir": ("/etc/containers/oci/hooks.d", "OCI hooks of podman and CRI-O"),
    }
    for option, (default, what) in places.items():
        put.add_argument(option, type=Path, default=Path(default), help=f"{what} ({default})")
    put.add_argument("--conflist", type=Path, help="the network (default: one on a Linux bridge)")


@dataclass
class Manifest:
    """Paths are the node's, below the root; `files` has SHA-256 digests."""

    root: Path
    files: dict[str, str] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, root: Path) -> Manifest:
        """An empty one where nothing is installed. Raises IOFailure."""
        path = _below(root, MANIFEST)
        try:
            data = json.loads(path.read_bytes())
            return cls(root, dict(data["files"]), list(data["directories"]))
        except FileNotFoundError:
            return cls(root)
        except (OSError, ValueError, TypeError, KeyError) as e:
            raise IOFailure(f"{path}: cannot be read as a manifest: {e!r}") from e

    def save(self) -> None:
        self.make_directory(os.path.dirname(MANIFEST))
        told = {"files": self.files, "directories": self.directories}
        data = json.dumps(told, indent=2).encode() + b"\n"
        files.replace(_below(self.root, MANIFEST), data, 0o600)

    def make_directory(self, directory: str) -> None:
        path = _below(self.root, directory)
        if path.is_dir():
            return
        self.make_directory(os.path.dirname(directory))
        try:
            path.mkdir(mode=0o755)
        except OSError as e:
            raise IOFailure(f"cannot make {path}: {e.strerror}") from e
        self.directories.append(directory)

    def remove_directories(self) -> None:
        """Those that were made, as far as they are empty; the deepest first."""
        for directory in reversed(self.directories):
            with suppress(OSError):
                _below(self.root, directory).rmdir()


def install(options: argparse.Namespace) -> None:
    """Raises VmlinkError, and nothing is installed that was not before."""
    if not options.root.is_dir():
        raise VmlinkError(f"--root: {options.root} is not a directory")
    manifest = Manifest.load(options.root)
    actions = {file: _decide(manifest, file) for file in payload(options)}
    for file, action in actions.items():
        print(f"{action:<10}{_below(options.root, file.path)}")
    writes = [file for file, action in actions.items() if action in ("new", "update")]
    if options.dry_run or not writes:
        return
    fresh = [file.path for file, action in actions.items() if action == "new"]
    try:
        for file in writes:
            manifest.make_directory(os.path.dirname(file.path))
            manifest.files[file.path] = _sum(file.data)
        # Before the files: whatever happens then, uninstall knows of each.
        manifest.save()
        for file in writes:
            files.replace(_below(options.root, file.path), file.data, file.mode)
    except BaseException:
        _forget(manifest, fresh)
        raise


def _decide(manifest: Manifest, file: File) -> str:
    present = _digest(_below(manifest.root, file.path))
    known = manifest.files.get(file.path)
    if present == _sum(file.data):
        return "unchanged" if known else "present"
    if present is None:
        return "new"
    if known is None:
        raise VmlinkError(
            f"{_below(manifest.root, file.path)} is there and is not vmlink's; move it away, or "
            "install elsewhere"
        )
    return "update" if present == known else "kept"


def _forget(manifest: Manifest, paths: list[str]) -> None:
    """Take an install back that failed half-way."""
    for path in paths:
        _take(manifest, path)
        manifest.files.pop(path, None)
    if manifest.files:
        with suppress(VmlinkError):
            manifest.save()
    else:
        _below(manifest.root, MANIFEST).unlink(missing_ok=True)
        manifest.remove_directories()


def uninstall(options: argparse.Namespace) -> None:
    """Raises VmlinkError when nothing is installed."""
    manifest = Manifest.load(options.root)
    if not manifest.files:
        raise VmlinkError(f"nothing is installed: there is no {_below(options.root, MANIFEST)}")
    for path in manifest.files:
        action = "removed"
        if _is_changed(manifest, path):
            action = "changed"
        elif not options.dry_run:
            _take(manifest, path)
        print(f"{action:<10}{_below(options.root, path)}")
    if not options.dry_run:
        _below(options.root, MANIFEST).unlink()
        manifest.remove_directories()


def _is_changed(manifest: Manifest, path: str) -> bool:
    return _digest(_below(manifest.root, path)) not in (None, manifest.files[path])


def _take(manifest: Manifest, path: str) -> None:
    if path in manifest.files and not _is_changed(manifest, path):
        try:
            _below(manifest.root, path).unlink(missing_ok=True)
        except OSError as e:
            raise IOFailure(f"cannot remove {_below(manifest.root, path)}: {e.strerror}") from e


def _below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _digest(path: Path) -> str | None:
    """None where nothing is; "" for what is no regular file."""
    try:
        return _sum(path.read_bytes()) if stat.S_ISREG(path.lstat().st_mode) else ""
    except FileNotFoundError:
        return None
    except OSError as e:
        raise IOFailure(f"cannot read {path}: {e.strerror}") from e


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
