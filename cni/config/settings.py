"""The settings of vmlinkd: vmlinkd.yaml -> Settings. `conf/vmlinkd.yaml` documents every key."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from cni.config.readers import (
    as_choice,
    as_list,
    as_number,
    as_object,
    as_path,
    as_socket_path,
    as_text,
    refuse_unknown,
)
from cni.errors import BadConfig
from cni.spec.request import check_network_name

DAN_DIR = "/run/kata-containers/dans"  # Kata's own default


@dataclass(frozen=True)
class Ovs:
    """Open vSwitch's database.

    `db` is where ovsdb-server listens, as ovsdb(7) writes it: unix:, tcp: or ssl:. The latter
    needs the three PEM files.
    """

    db: str = "unix:/run/openvswitch/db.sock"
    private_key: str = ""
    certificate: str = ""
    ca_cert: str = ""


@dataclass(frozen=True)
class Kubernetes:
    """The node whose pods are watched, and the credentials for the API server.

    Without a `kubeconfig` they are the service account's of the pod that vmlinkd runs in. Source:
    Kubernetes documentation, "Accessing the Kubernetes API from a Pod".
    """

    node: str = ""
    kubeconfig: str = ""

    @property
    def configured(self) -> bool:
        """Whether there are credentials."""
        return bool(self.kubeconfig) or "KUBERNETES_SERVICE_HOST" in os.environ

    @property
    def node_name(self) -> str:
        """The node's name: `node`, else $NODE_NAME, else the host's name."""
        return self.node or os.environ.get("NODE_NAME") or socket.gethostname().lower()


@dataclass(frozen=True)
class KubeOvnSocket:
    """How kube-ovn's own plugin is served.

    vmlinkd listens at `listen` ("": it does not); kube-ovn's daemon listens at `daemon`. All pods
    of `providers` are vmlink's. `network` is their configuration, as in a conflist.
    """

    listen: str = ""
    daemon: str = "/run/openvswitch/kube-ovn-daemon.sock"
    providers: list[str] = field(default_factory=list)
    network: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PoolSize:
    """The size of a pool: it is filled up to `size` when it has fewer than `refill_below` ports."""

    size: int
    refill_below: int


@dataclass(frozen=True)
class Settings:
    """All settings, with their defaults.

    `workers` requests are served at a time, each for `deadline` seconds at most. `dan_dir` is
    where Kata looks for its files (`dan_conf` in its configuration). `runtime_classes` maps
    runtime classes to modes; "" is a pod without one. `pools` is by network and mode.
    """

    workers: int = 64
    deadline: float = 45
    log_level: str = "info"
    dan_dir: str = DAN_DIR
    ovs: Ovs = Ovs()
    kubernetes: Kubernetes = Kubernetes()
    runtime_classes: Mapping[str, str] = field(default_factory=dict)
    kubeovn: KubeOvnSocket = field(default_factory=KubeOvnSocket)
    pools: Mapping[str, Mapping[str, PoolSize]] = field(default_factory=dict)


_MOST_PORTS = 1024  # of one pool
_LEVELS = ("debug", "info", "warning", "error")


def load(path: Path | None, modes: Collection[str], poolable: Collection[str]) -> Settings:
    """Read the settings of a file; None means the defaults.

    `modes` are the modes that there are, `poolable` those that a pool can be of. Raises BadConfig
    or UnsupportedField with the file, the key and what is allowed.
    """
    if path is None:
        return Settings()
    try:
        content: Any = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, ValueError) as e:  # ValueError: a date that does not exist
        raise BadConfig(f"{path}: cannot read: {e}") from e
    if content is None:  # nothing but comments
        return Settings()
    readers: dict[str, Callable[[Any, str], Any]] = {
        "workers": partial(as_number, low=1, high=256),
        "deadline": partial(as_number, low=1, high=600),
        "log_level": partial(as_choice, allowed=_LEVELS),
        "dan_dir": as_path,
        "ovs": _ovs,
        "kubernetes": _kubernetes,
        "runtime_classes": partial(_runtime_classes, modes=modes),
        "kubeovn": _kubeovn,
        "pools": partial(_pools, poolable=poolable),
    }
    data = as_object(content, str(path))
    refuse_unknown(data, readers, f"{path}: ")
    return Settings(**{key: readers[key](value, f"{path}: {key}") for key, value in data.items()})


def with_db(settings: Settings, db: str) -> Settings:
    """Return the settings with the database of `--ovs-db`. Raises BadConfig."""
    ovs = replace(settings.ovs, db=_remote(db, "--ovs-db"))
    _check_tls(ovs, "ovs")
    return replace(settings, ovs=ovs)


def dump(settings: Settings) -> str:
    """Return the settings as YAML that `load` reads, with all defaults.

    What comes from the environment is filled in. There are no secrets: keys are named, not shown.
    """
    filled = replace(settings.kubernetes, node=settings.kubernetes.node_name)
    return yaml.safe_dump(asdict(replace(settings, kubernetes=filled)), sort_keys=False)


def _fields(value: Any, where: str, kind: type[Any]) -> dict[str, Any]:
    """Check that a section has no keys but the fields of `kind`."""
    data = as_object(value, where)
    refuse_unknown(data, [f.name for f in fields(kind)], f"{where}.")
    return data


def _ovs(value: Any, where: str) -> Ovs:
    ovs = Ovs(**_fields(value, where, Ovs))
    _remote(ovs.db, f"{where}.db")
    for key in ("private_key", "certificate", "ca_cert"):
        if (path := getattr(ovs, key)) != "":
            as_path(path, f"{where}.{key}")
    _check_tls(ovs, where)
    return ovs


def _remote(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.startswith(("unix:/", "tcp:", "ssl:")):
        raise BadConfig(
            f"{where}: expected unix:/PATH, tcp:HOST:PORT or ssl:HOST:PORT, found {value!r}"
        )
    return value


def _check_tls(ovs: Ovs, where: str) -> None:
    """Have the files of an ssl: database read, since python-ovs would say nothing of a bad one."""
    if not ovs.db.startswith("ssl:"):
        return
    for key in ("private_key", "certificate", "ca_cert"):
        if not getattr(ovs, key):
            raise BadConfig(f"{where}.{key}: required for {ovs.db}; name a PEM file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(ovs.ca_cert)
    except OSError as e:  # SSLError is one, too
        raise BadConfig(f"{where}.ca_cert: cannot use {ovs.ca_cert}: {e}") from e
    try:
        context.load_cert_chain(ovs.certificate, ovs.private_key)
    except OSError as e:
        both = f"{ovs.certificate} with {ovs.private_key}"
        raise BadConfig(f"{where}.certificate: cannot use {both}: {e}") from e


def _kubernetes(value: Any, where: str) -> Kubernetes:
    data = _fields(value, where, Kubernetes)
    made = Kubernetes(**{key: as_text(data[key], f"{where}.{key}") for key in data})
    if made.kubeconfig and not os.path.isfile(made.kubeconfig):
        raise BadConfig(
            f"{where}.kubeconfig: there is no file {made.kubeconfig}; name one, or leave it empty "
            "in a pod with a service account"
        )
    return made


def _runtime_classes(value: Any, where: str, modes: Collection[str]) -> dict[str, str]:
    classes = as_object(value, where)
    return {
        as_text(name, f"{where}.{name}"): as_choice(mode, f"{where}.{name}", modes)
        for name, mode in classes.items()
    }


def _kubeovn(value: Any, where: str) -> KubeOvnSocket:
    made = KubeOvnSocket(**_fields(value, where, KubeOvnSocket))
    if made.listen != "":
        as_socket_path(made.listen, f"{where}.listen")
    as_socket_path(made.daemon, f"{where}.daemon")
    if made.listen == made.daemon:
        raise BadConfig(f"{where}.listen: is kube-ovn's own socket, as daemon says; name another")
    for n, provider in enumerate(as_list(made.providers, f"{where}.providers")):
        as_text(provider, f"{where}.providers[{n}]")
    as_object(made.network, f"{where}.network")
    if made.listen and not made.network:
        raise BadConfig(
            f"{where}.network: required beside listen; at least ovs: {{bridge: br-int}}"
        )
    return made


def _pools(value: Any, where: str, poolable: Collection[str]) -> dict[str, dict[str, PoolSize]]:
    pools: dict[str, dict[str, PoolSize]] = {}
    for network, by_mode in as_object(value, where).items():
        inner = f"{where}.{network}"
        check_network_name(network, inner)
        pools[network] = {
            mode: _pool(size, f"{inner}.{mode}", mode, poolable)
            for mode, size in as_object(by_mode, inner).items()
        }
    return pools


def _pool(value: Any, where: str, mode: str, poolable: Collection[str]) -> PoolSize:
    if mode not in poolable:
        raise BadConfig(
            f"{where}: a pool is of mode {' or '.join(poolable)}; the kernel takes longer to move "
            "a link into a pod's namespace than to make one there"
        )
    data = _fields(value, where, PoolSize)
    if "size" not in data:
        raise BadConfig(f"{where}.size: required, the number of ports")
    size = as_number(data["size"], f"{where}.size", 1, _MOST_PORTS)
    below = data.get("refill_below", (size + 1) // 2)
    return PoolSize(size, as_number(below, f"{where}.refill_below", 1, size))
