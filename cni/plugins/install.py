"""vmlinkctl install and uninstall: put vmlink's files on a node, and remove exactly those.

A manifest, /var/lib/vmlink/installed.json, lists each file with the digest of what was installed,
and each directory that was made. A file that somebody has changed since is kept and reported.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cni import files
from cni.attach.records import Store
from cni.errors import IOFailure, VmlinkError
from cni.plugins import systemd
from cni.plugins.node_files import PARTS, File, digest_of, digest_of_link, payload

MANIFEST = "/var/lib/vmlink/installed.json"


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs `install` and `uninstall` to vmlinkctl's command line."""
    put = verbs.add_parser("install", help="install vmlink's files on this node")
    put.set_defaults(action=install)
    take = verbs.add_parser("uninstall", help="remove what install has installed")
    take.set_defaults(action=uninstall)
    for verb in (put, take):
        verb.add_argument(
            "--root", type=Path, default=Path("/"), help="the node's file system (default: /)"
        )
        verb.add_argument("--dry-run", action="store_true", help="only print what would be done")
    put.add_argument(
        "parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (default: all)"
    )
    places = {
        "--bin-dir": (
            os.path.dirname(os.path.abspath(sys.argv[0])),
            "where vmlinkd and vmlink-hook are",
        ),
        "--cni-bin-dir": ("/opt/cni/bin", "CNI plugins"),
        "--cni-conf-dir": ("/etc/cni/net.d", "CNI networks"),
        "--unit-dir": ("/etc/systemd/system", "systemd's units"),
        "--hooks-dir": ("/etc/containers/oci/hooks.d", "OCI hooks of podman and CRI-O"),
    }
    for option, (default, what) in places.items():
        put.add_argument(
            option, type=Path, default=Path(default), help=f"{what} (default: {default})"
        )
    put.add_argument("--conflist", type=Path, help="the network (default: one on a Linux bridge)")


@dataclass
class Manifest:
    """The installed files with their SHA-256 digests, and the directories that were made.

    All paths are those on the node, that is below `root`.
    """

    root: Path
    files: dict[str, str] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, root: Path) -> Manifest:
        """Read the manifest of a node; it is empty if nothing is installed. Raises IOFailure."""
        path = _below(root, MANIFEST)
        try:
            data = json.loads(path.read_bytes())
            return cls(root, dict(data["files"]), list(data["directories"]))
        except FileNotFoundError:
            return cls(root)
        except (OSError, ValueError, TypeError, KeyError) as e:
            raise IOFailure(f"{path}: cannot be read as a manifest ({e!r}); remove it") from e

    def save(self) -> None:
        """Write the manifest to the node. Raises IOFailure, OSError."""
        self.make_directory(os.path.dirname(MANIFEST))
        content = {"files": self.files, "directories": self.directories}
        data = json.dumps(content, indent=2).encode() + b"\n"
        files.replace(_below(self.root, MANIFEST), data, 0o600)

    def make_directory(self, directory: str) -> None:
        """Make a directory with its parents, and note those that were not there. Raises OSError."""
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
        """Remove the directories that were made, as far as they are empty."""
        for directory in reversed(self.directories):
            with suppress(OSError):
                _below(self.root, directory).rmdir()


def install(options: argparse.Namespace) -> None:
    """Install vmlink's files and print what happened to each.

    Raises VmlinkError, OSError; nothing new is installed then, unless it is systemd that refuses.
    """
    if not options.root.is_dir():
        raise VmlinkError(f"--root: {options.root} is not a directory")
    manifest = Manifest.load(options.root)
    actions = {file: _decide(manifest, file) for file in payload(options)}
    for file, action in actions.items():
        print(f"{action:<10}{_below(options.root, file.path)}")
    writes = [file for file, action in actions.items() if _is_to_do(file, action)]
    if options.dry_run or not writes:
        return
    fresh = [file.path for file, action in actions.items() if action == "new"]
    try:
        for file in writes:
            manifest.make_directory(os.path.dirname(file.path))
            manifest.files[file.path] = file.digest
        # The manifest is written before the files, so that uninstall knows of each in any case.
        manifest.save()
        for file in writes:
            _write(_below(options.root, file.path), file)
    except BaseException:
        _forget(manifest, fresh)
        raise
    systemd.start(options.root, [file.path for file in writes])


def _decide(manifest: Manifest, file: File) -> str:
    present = _digest(_below(manifest.root, file.path))
    known = manifest.files.get(file.path)
    if present == file.digest:
        return "unchanged" if known else "present"
    if present is None:
        # Of a link that was there, `systemctl disable` is the end.
        return "kept" if file.link and known else "new"
    if known is None:
        raise VmlinkError(
            f"{_below(manifest.root, file.path)} is there and is not vmlink's; move it away, or "
            "install elsewhere"
        )
    return "update" if present == known else "kept"


def _is_to_do(file: File, action: str) -> bool:
    # A link that is there already, by `systemctl enable`, is taken over: it points at our unit.
    return action in ("new", "update") or (action == "present" and bool(file.link))


def _write(path: Path, file: File) -> None:
    if not file.link:
        files.replace(path, file.data, file.mode)
        return
    path.unlink(missing_ok=True)
    path.symlink_to(file.link)


def _forget(manifest: Manifest, paths: list[str]) -> None:
    """Undo an install that has failed half-way."""
    for path in paths:
        _remove(manifest, path)
        manifest.files.pop(path, None)
    if manifest.files:
        with suppress(VmlinkError):
            manifest.save()
    else:
        _below(manifest.root, MANIFEST).unlink(missing_ok=True)
        manifest.remove_directories()


def uninstall(options: argparse.Namespace) -> None:
    """Remove what is installed and print what happened to each file.

    Raises VmlinkError when nothing is installed, IOFailure, OSError.
    """
    manifest = Manifest.load(options.root)
    if not manifest.files:
        raise VmlinkError(f"nothing is installed: there is no {_below(options.root, MANIFEST)}")
    _warn_of_pods(_below(options.root, str(options.run_dir)))
    paths = [*manifest.files]
    if not options.dry_run:
        systemd.stop(options.root, paths)
    for path in manifest.files:
        action = "removed"
        if _is_changed(manifest, path):
            action = "changed"
        elif not options.dry_run:
            _remove(manifest, path)
        print(f"{action:<10}{_below(options.root, path)}")
    if not options.dry_run:
        _below(options.root, MANIFEST).unlink()
        manifest.remove_directories()
        systemd.forget(options.root, paths)


def _warn_of_pods(run_dir: Path) -> None:
    records = [*Store(run_dir / "state").all()]
    if records:
        first = records[0]
        print(
            f"warning: {len(records)} attachments of this node live, as {first.container_id}/"
            f"{first.ifname}; without the client no runtime can DEL them: end their pods first",
            file=sys.stderr,
        )


def _is_changed(manifest: Manifest, path: str) -> bool:
    return _digest(_below(manifest.root, path)) not in (None, manifest.files[path])


def _remove(manifest: Manifest, path: str) -> None:
    if path in manifest.files and not _is_changed(manifest, path):
        try:
            _below(manifest.root, path).unlink(missing_ok=True)
        except OSError as e:
            raise IOFailure(f"cannot remove {_below(manifest.root, path)}: {e.strerror}") from e


def _below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _digest(path: Path) -> str | None:
    """The digest of a file; None if there is none, "" for what is neither regular nor a link."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return digest_of_link(os.readlink(path))
        return digest_of(path.read_bytes()) if stat.S_ISREG(mode) else ""
    except FileNotFoundError:
        return None
    except OSError as e:
        raise IOFailure(f"cannot read {path}: {e.strerror}") from e
