"""vmlinkd.yaml -> Settings. `conf/vmlinkd.yaml` documents every key."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from cni.config.network import MODES
from cni.config.readers import SUN_PATH
from cni.errors import BadConfig
from cni.spec.request import check_network_name

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
class Kubernetes:
    """Whose pods are watched, and with which credentials: a file, else those of vmlinkd's pod."""

    node: str = ""
    kubeconfig: str = ""

    @property
    def configured(self) -> bool:
        return bool(self.kubeconfig) or "KUBERNETES_SERVICE_HOST" in os.environ

    @property
    def node_name(self) -> str:
        return self.node or os.environ.get("NODE_NAME") or socket.gethostname().lower()


@dataclass(frozen=True)
class KubeOvnSocket:
    """Where kube-ovn's plugin is served ("": nowhere), where kube-ovn's own daemon listens, which
    providers are vmlink's for every pod, and the network's configuration, as a conflist has it."""

    listen: str = ""
    daemon: str = "/run/openvswitch/kube-ovn-daemon.sock"
    providers: list[str] = field(default_factory=list)
    network: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PoolSize:
    """So many kits are made when fewer than `refill_below` are left."""

    size: int
    refill_below: int


@dataclass(frozen=True)
class Settings:
    """`deadline` in seconds, for one request; `workers` serve that many requests at a time.
    `dan_dir` is where Kata looks for its files, `dan_conf` in its configuration;
    `runtime_classes` maps them to modes; "" is a pod without one; `pools` by network and mode."""

    workers: int = 64
    deadline: float = 45
    log_level: str = "info"
    dan_dir: str = DAN_DIR
    ovs: Ovs = Ovs()
    kubernetes: Kubernetes = Kubernetes()
    runtime_classes: Mapping[str, str] = field(default_factory=dict)
    kubeovn: KubeOvnSocket = field(default_factory=KubeOvnSocket)
    pools: Mapping[str, Mapping[str, PoolSize]] = field(default_factory=dict)


_SECTIONS: dict[str, type[Ovs | Kubernetes | KubeOvnSocket]] = {
    "ovs": Ovs,
    "kubernetes": Kubernetes,
    "kubeovn": KubeOvnSocket,
}
_POOLED = ("tap", "vhostuser")
_MOST_KITS = 1024
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
    _refuse_unknown(f"{path}: ", _mapping(str(path), data), Settings)
    for key, value in data.items():
        _check(f"{path}: {key}", key, value)
    made: dict[str, Any] = {k: _SECTIONS[k](**v) if k in _SECTIONS else v for k, v in data.items()}
    made["pools"] = _pools(f"{path}: pools", data.get("pools", {}))
    return Settings(**made)


def _pools(where: str, data: Any) -> dict[str, dict[str, PoolSize]]:
    """The section, which names networks, each of which names modes."""
    pools: dict[str, dict[str, PoolSize]] = {}
    for network, modes in _mapping(where, data).items():
        inner = f"{where}.{network}"
        check_network_name(network, inner)
        pools[network] = {
            mode: _pool(f"{inner}.{mode}", mode, value)
            for mode, value in _mapping(inner, modes).items()
        }
    return pools


def _pool(where: str, mode: str, data: Any) -> PoolSize:
    if mode not in _POOLED:
        raise BadConfig(
            f"{where}: a pool is of mode {' or '.join(_POOLED)}; the kernel takes longer to move a "
            "link into a pod's namespace than to make one there"
        )
    _refuse_unknown(f"{where}.", _mapping(where, data), PoolSize)
    if "size" not in data:
        raise BadConfig(f"{where}.size: required, the number of kits")
    size = _number(f"{where}.size", data["size"], 1, _MOST_KITS)
    below = data.get("refill_below", (size + 1) // 2)
    return PoolSize(size, _number(f"{where}.refill_below", below, 1, size))


def _mapping(where: str, value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise BadConfig(f"{where}: expected keys and values, found {value!r}")
    return value


def _number(where: str, value: Any, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise BadConfig(f"{where}: expected a number from {low} to {high}, found {value!r}")
    return value


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


def _check_kubernetes(where: str, found: Kubernetes) -> None:
    for key, value in vars(found).items():
        if not isinstance(value, str):
            raise BadConfig(f"{where}{key}: expected a text, found {value!r}")
    if found.kubeconfig and not os.path.isfile(found.kubeconfig):
        raise BadConfig(f"{where}kubeconfig: there is no file {found.kubeconfig}")


def _check_kubeovn(where: str, found: KubeOvnSocket) -> None:
    for key in ("listen", "daemon"):
        path = getattr(found, key)
        fits = isinstance(path, str) and len(path.encode()) <= SUN_PATH
        if not fits or not (path.startswith("/") or (key == "listen" and not path)):
            raise BadConfig(
                f"{where}{key}: expected an absolute path of {SUN_PATH} bytes at most, found "
                f"{path!r}"
            )
    if found.listen == found.daemon:
        raise BadConfig(f"{where}listen: is kube-ovn's own socket, as daemon says; name another")
    if not isinstance(found.providers, list) or not all(
        isinstance(provider, str) for provider in found.providers
    ):
        raise BadConfig(f"{where}providers: expected a list of texts, found {found.providers!r}")
    if not isinstance(found.network, dict):
        raise BadConfig(f"{where}network: expected keys and values, found {found.network!r}")
    if found.listen and not found.network:
        raise BadConfig(f"{where}network: required beside listen; at least ovs: {{bridge: br-int}}")


def _check_classes(where: str, found: Any) -> None:
    for name, mode in _mapping(where, found).items():
        if not isinstance(name, str) or mode not in MODES:
            raise BadConfig(f"{where}.{name}: expected one of {', '.join(MODES)}, found {mode!r}")


def _refuse_unknown(where: str, data: dict[Any, Any], kind: type[Any]) -> None:
    known = [f.name for f in fields(kind)]
    for key in data:
        if key not in known:
            raise BadConfig(f"{where}{key}: unknown key; known are {', '.join(known)}")


def _check_section(where: str, key: str, value: Any) -> None:
    kind = _SECTIONS[key]
    _refuse_unknown(f"{where}.", _mapping(where, value), kind)
    section = kind(**value)
    if isinstance(section, Ovs):
        _check_ovs(f"{where}.db: ", f"{where}.", section)
    elif isinstance(section, Kubernetes):
        _check_kubernetes(f"{where}.", section)
    else:
        _check_kubeovn(f"{where}.", section)


def _check(where: str, key: str, value: Any) -> None:
    if key in _SECTIONS:
        _check_section(where, key, value)
    elif key == "runtime_classes":
        _check_classes(where, value)
    elif key == "dan_dir":
        if not isinstance(value, str) or not value.startswith("/"):
            raise BadConfig(f"{where}: expected an absolute path, found {value!r}")
    elif key in _RANGES:
        _number(where, value, *_RANGES[key])
    elif key == "log_level" and value not in _LEVELS:
        raise BadConfig(f"{where}: expected one of {', '.join(_LEVELS)}, found {value!r}")
