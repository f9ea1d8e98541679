"""vmlinkd.yaml -> Settings. `conf/vmlinkd.yaml` documents every key."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from cni.errors import BadConfig

DAN_DIR = "/run/kata-containers/dans"  # Kata's own default


@dataclass(frozen=True)
class Ovs:
    """`db` is where ovsdb-server listens, as ovsdb(7) writes it: unix:, tcp: or ssl:, which
    needs the three files (PEM)."""

    db: str = "unix:/run/openvswitch/db.sock"
    private_key: str = ""
    certificate: str = ""
    ca_cert: str = ""


@dataclass(frozen=True)
class Settings:
    """`deadline` in seconds, for one request; `workers` serve that many requests at a time.
    `dan_dir` is where Kata looks for its files, `dan_conf` in its configuration."""

    workers: int = 64
    deadline: float = 45
    log_level: str = "info"
    dan_dir: str = DAN_DIR
    ovs: Ovs = Ovs()


_RANGES = {"workers": (1, 256), "deadline": (1, 600)}
_LEVELS = ("debug", "info", "warning", "error")


def load(path: Path | None) -> Settings:
    """Raises BadConfig, which names the file, the key and what is allowed."""
    if path is None:
        return Settings()
    try:
        data: Any = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, ValueError) as e:  # PyYAML makes dates of numbers
        raise BadConfig(f"{path}: cannot read: {e}") from e
    if data is None:  # nothing but comments
        return Settings()
    if not isinstance(data, dict):
        raise BadConfig(f"{path}: expected keys and values, found {data!r}")
    _refuse_unknown(f"{path}: ", data, Settings)
    for key, value in data.items():
        _check(f"{path}: {key}", key, value)
    plain = {key: value for key, value in data.items() if key != "ovs"}
    return Settings(**plain, ovs=Ovs(**data.get("ovs", {})))


def with_db(settings: Settings, db: str) -> Settings:
    """The settings with another database, as from the command line. Raises BadConfig."""
    changed = replace(settings.ovs, db=db)
    _check_ovs("--ovs-db: ", "ovs.", changed)
    return replace(settings, ovs=changed)


def _check_ovs(db: str, where: str, ovs: Ovs) -> None:
    """`db` and `where` begin the messages about the address and about the files."""
    if not isinstance(ovs.db, str) or not ovs.db.startswith(("unix:/", "tcp:", "ssl:")):
        raise BadConfig(
            f"{db}expected unix:/PATH, tcp:HOST:PORT or ssl:HOST:PORT, found {ovs.db!r}"
        )
    for key in ("private_key", "certificate", "ca_cert"):
        value = getattr(ovs, key)
        if not isinstance(value, str) or (value and not value.startswith("/")):
            raise BadConfig(f"{where}{key}: expected an absolute path, found {value!r}")
        if ovs.db.startswith("ssl:") and not value:
            raise BadConfig(f"{where}{key}: required for {ovs.db}")
    if ovs.db.startswith("ssl:"):
        _require_keys(where, ovs)


def _require_keys(where: str, ovs: Ovs) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(ovs.ca_cert)
    except OSError as e:  # also of what is no certificate
        raise BadConfig(f"{where}ca_cert: cannot use {ovs.ca_cert}: {e}") from e
    try:
        context.load_cert_chain(ovs.certificate, ovs.private_key)
    except OSError as e:
        both = f"{ovs.certificate} with {ovs.private_key}"
        raise BadConfig(f"{where}certificate: cannot use {both}: {e}") from e


def _refuse_unknown(where: str, data: dict[Any, Any], kind: type[Settings | Ovs]) -> None:
    known = [f.name for f in fields(kind)]
    for key in data:
        if key not in known:
            raise BadConfig(f"{where}{key}: unknown key; known are {', '.join(known)}")


def _check(where: str, key: str, value: Any) -> None:
    if key == "ovs":
        if not isinstance(value, dict):
            raise BadConfig(f"{where}: expected keys and values, found {value!r}")
        _refuse_unknown(f"{where}.", value, Ovs)
        _check_ovs(f"{where}.db: ", f"{where}.", Ovs(**value))
        return
    if key == "dan_dir":
        if not isinstance(value, str) or not value.startswith("/"):
            raise BadConfig(f"{where}: expected an absolute path, found {value!r}")
    elif key in _RANGES:
        low, high = _RANGES[key]
        number = isinstance(value, int) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            raise BadConfig(f"{where}: expected a number from {low} to {high}, found {value!r}")
    elif value not in _LEVELS:
        raise BadConfig(f"{where}: expected one of {', '.join(_LEVELS)}, found {value!r}")
