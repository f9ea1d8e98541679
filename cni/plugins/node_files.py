"""The files that `vmlinkctl install` puts on a node, and where they go.

They come from conf/ and, for the C client, from where the other programs are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cni.errors import BadConfig, IOFailure, VmlinkError

PARTS = ("client", "network", "units", "hooks")
_DEFAULT_NETWORK = "10-vmlink-linux.conflist"
_BIN_DIR = b"/usr/local/bin/"  # where the programs are, in the files of conf/
_SETTINGS = "/etc/vmlink/vmlinkd.yaml"
# At a start of the node vmlinkd itself, not only its socket: it fills pools and serves kube-ovn's.
_WANTED_BY = {"vmlinkd.service": "multi-user.target", "vmlinkd.socket": "sockets.target"}
_HOMES = ("/home", "/root", "/run/user")  # systemd.exec(5), ProtectHome=


@dataclass(frozen=True)
class File:
    """A file to install: its path on the node, its content, its mode.

    With `link` it is a symbolic link to that path.
    """

    path: str
    data: bytes = b""
    mode: int = 0o644
    link: str = ""

    @property
    def digest(self) -> str:
        """What stands for its content in the manifest."""
        return digest_of_link(self.link) if self.link else digest_of(self.data)


def digest_of(data: bytes) -> str:
    """The SHA-256 of a regular file's content."""
    return hashlib.sha256(data).hexdigest()


def digest_of_link(target: str) -> str:
    """What stands for a symbolic link."""
    return f"-> {target}"


def payload(options: argparse.Namespace) -> list[File]:
    """The files of the parts that were asked for. Raises VmlinkError."""
    for part in options.parts:
        if part not in PARTS:
            raise VmlinkError(f"{part!r}: expected one of {', '.join(PARTS)}")
    makers = {"client": _client, "network": _network, "units": _units, "hooks": _hooks}
    parts = options.parts or PARTS
    return [file for part in PARTS if part in parts for file in makers[part](options)]


def _client(options: argparse.Namespace) -> Iterator[File]:
    source = Path(sys.argv[0]).absolute().with_name("vmlink")
    yield File(_place(options.cni_bin_dir, "vmlink"), _read(source), 0o755)


def _network(options: argparse.Namespace) -> Iterator[File]:
    source = options.conflist or _conf() / _DEFAULT_NETWORK
    data = _read(source)
    try:
        plugins = json.loads(data)["plugins"]
        has_vmlink = any(plugin.get("type") == "vmlink" for plugin in plugins)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise BadConfig(f"--conflist: {source} is not a list of plugins: {e!r}") from e
    if not has_vmlink:
        raise BadConfig(f'--conflist: {source} has no plugin of "type": "vmlink"')
    yield File(_place(options.cni_conf_dir, source.name), data)


def _units(options: argparse.Namespace) -> Iterator[File]:
    for name, target in _WANTED_BY.items():
        place, data = _place(options.unit_dir, name), _with_bin_dir(options, _conf() / name)
        if b"\nProtectHome=yes" in data:
            _require_visible(options)
        yield File(place, data)
        # As `systemctl enable` makes them.
        yield File(_place(options.unit_dir / f"{target}.wants", name), link=place)
    yield File(_SETTINGS, _read(_conf() / "vmlinkd.yaml"))


def _require_visible(options: argparse.Namespace) -> None:
    """Raise BadConfig where systemd would hide vmlinkd from itself."""
    program = options.bin_dir / "vmlinkd"
    places = [program, program.resolve()] if options.root == Path("/") else [program]
    for place in places:
        if any(place.is_relative_to(home) for home in _HOMES):
            raise BadConfig(
                f"--bin-dir: {place} is below a home directory, which ProtectHome= in "
                "vmlinkd.service hides from vmlinkd; install the package elsewhere, as in "
                "/opt/vmlink, or leave the part units out"
            )


def _hooks(options: argparse.Namespace) -> Iterator[File]:
    for source in sorted((_conf() / "hooks.d").glob("*.json")):
        yield File(_place(options.hooks_dir, source.name), _with_bin_dir(options, source))


def _with_bin_dir(options: argparse.Namespace, source: Path) -> bytes:
    return _read(source).replace(_BIN_DIR, f"{options.bin_dir}/".encode())


def _place(directory: Path, name: str) -> str:
    if not directory.is_absolute() or ".." in directory.parts:
        raise BadConfig(f"{directory}: expected an absolute path without '..'")
    return str(directory / name)


def _conf() -> Path:
    """The directory conf/ of the source tree, or of the installed wheel."""
    tree = Path(__file__).parents[2] / "conf"
    return tree if tree.is_dir() else Path(sys.prefix, "share", "vmlink")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise IOFailure(f"cannot read {path}: {e.strerror}") from e
