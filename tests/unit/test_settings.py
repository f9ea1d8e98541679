"""vmlinkd.yaml: defaults, values, errors; the file in conf/ must hold exactly the defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from cni.config import settings
from cni.config.settings import KubeOvnSocket, Kubernetes, Ovs, PoolSize, Settings
from cni.errors import BadConfig, UnsupportedField
from cni.modes import MODES

POOLABLE = ("tap", "vhostuser")
REFUSED = (BadConfig, UnsupportedField)
Load = Callable[[str | bytes], Settings]

NUMBER = "(workers|deadline): expected a number"
DOCUMENTED = Path(__file__).parents[2] / "conf" / "vmlinkd.yaml"


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def write_and_load(text: str | bytes) -> Settings:
        path = tmp_path / "vmlinkd.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return settings.load(path, MODES, POOLABLE)

    return write_and_load


def test_the_documented_file_holds_every_default() -> None:
    assert settings.load(DOCUMENTED, MODES, POOLABLE) == Settings()
    assert settings.load(None, MODES, POOLABLE) == Settings()
    assert yaml.safe_load(DOCUMENTED.read_text()) == asdict(Settings())


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
def test_an_empty_file_means_the_defaults(load: Load, text: str) -> None:
    assert load(text) == Settings()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("workers: 1", Settings(workers=1)),
        ("workers: 256", Settings(workers=256)),
        ("dan_dir: /run/dans", Settings(dan_dir="/run/dans")),
        ("deadline: 600\nlog_level: debug", Settings(deadline=600, log_level="debug")),
    ],
)
def test_values(load: Load, text: str, expected: Settings) -> None:
    assert load(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((f"workers: {v}", NUMBER) for v in ("0", "257", "yes", "'4'", "[]")),
        *((f"deadline: {v}", NUMBER) for v in ("0", "601", "null", ".nan")),
        *((f"log_level: {v}", "log_level: expected one of") for v in ("loud", "INFO", "1", "[]")),
        *((f"dan_dir: {v}", "dan_dir: expected an absolute path") for v in ("dans", "7", "")),
        ("worker: 4", r"worker: unknown key \(value 4\); known are .*, workers"),
        ("1: 4", "1: unknown key"),
        ("- workers", "expected an object"),
        ("workers", "expected an object"),
        ("workers: [", "cannot read"),
        ("log_level: 2024-13-45", "cannot read"),
        (b"log_level: \xff", "cannot read"),
    ],
)
def test_what_is_refused_is_named_with_its_file(
    load: Load, text: str | bytes, message: str
) -> None:
    with pytest.raises(REFUSED, match=rf"/vmlinkd\.yaml: {message}"):
        load(text)


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="cannot read"):
        settings.load(tmp_path / "absent.yaml", MODES, POOLABLE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ovs: {}", Ovs()),
        ("ovs: {db: 'unix:/x/db.sock'}", Ovs("unix:/x/db.sock")),
        ("ovs: {db: 'tcp:127.0.0.1:6640'}", Ovs("tcp:127.0.0.1:6640")),
    ],
)
def test_the_database_of_open_vswitch(load: Load, text: str, expected: Ovs) -> None:
    assert load(text).ovs == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ovs: br0", "ovs: expected an object"),
        ("ovs: {bridge: br0}", "ovs.bridge: unknown key"),
        *((f"ovs: {{db: {v}}}", "ovs.db: expected") for v in ("5", "/x", "'punix:/x'", "'unix:x'")),
        ("ovs: {db: 'ssl:127.0.0.1:6640'}", "ovs.private_key: required"),
        (
            "ovs: {db: 'ssl:127.0.0.1:6640', private_key: /k, certificate: /c, ca_cert: /a}",
            "ovs.ca_cert: cannot use /a: .*No such file",
        ),
        ("ovs: {ca_cert: a.pem}", "ovs.ca_cert: expected an absolute path"),
    ],
)
def test_a_wrong_database_is_named(load: Load, text: str, message: str) -> None:
    with pytest.raises(REFUSED, match=message):
        load(text)


def test_a_cluster_with_kube_ovn(load: Load, tmp_path: Path) -> None:
    (tmp_path / "config").touch()
    found = load(
        f"kubernetes: {{node: n1, kubeconfig: {tmp_path}/config}}\n"
        "runtime_classes: {kata: tc, '': veth}\n"
        "kubeovn: {listen: /x, providers: [a.b.ovn], network: {ovs: {bridge: br-int}}}"
    )
    assert found.kubernetes == Kubernetes("n1", f"{tmp_path}/config")
    assert found.runtime_classes == {"kata": "tc", "": "veth"}
    network = {"ovs": {"bridge": "br-int"}}
    assert found.kubeovn == KubeOvnSocket("/x", KubeOvnSocket.daemon, ["a.b.ovn"], network)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kubernetes: {server: x}", "kubernetes.server: unknown key"),
        ("kubernetes: {node: 5}", "kubernetes.node: expected a text"),
        ("kubernetes: {kubeconfig: /absent}", "kubernetes.kubeconfig: there is no file /absent"),
        ("runtime_classes: [kata]", "runtime_classes: expected an object"),
        ("runtime_classes: {kata: vm}", "runtime_classes.kata: expected one of tc, .* found 'vm'"),
        ("runtime_classes: {5: tc}", "runtime_classes.5: expected a text"),
        ("kubeovn: {listen: x}", "kubeovn.listen: expected an absolute path"),
        (f"kubeovn: {{listen: /{'x' * 107}}}", "kubeovn.listen: .* 107 bytes at most"),
        ("kubeovn: {daemon: ''}", "kubeovn.daemon: expected an absolute path"),
        ("kubeovn: {listen: /x, daemon: /x}", "kubeovn.listen: is kube-ovn's own"),
        ("kubeovn: {listen: /x}", "kubeovn.network: required beside listen"),
        ("kubeovn: {providers: ovn}", "kubeovn.providers: expected a list"),
        ("kubeovn: {network: br-int}", "kubeovn.network: expected an object"),
    ],
)
def test_a_wrong_cluster_is_named(load: Load, text: str, message: str) -> None:
    with pytest.raises(REFUSED, match=message):
        load(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pools: {net: {tap: {size: 8}}}", {"net": {"tap": PoolSize(8, 4)}}),
        (
            "pools: {net: {tap: {size: 9, refill_below: 9}, vhostuser: {size: 1}}}",
            {"net": {"tap": PoolSize(9, 9), "vhostuser": PoolSize(1, 1)}},
        ),
    ],
)
def test_pools(load: Load, text: str, expected: dict[str, dict[str, PoolSize]]) -> None:
    assert load(text).pools == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pools: 5", "pools: expected an object"),
        ("pools: {net: 5}", "pools.net: expected an object"),
        ("pools: {a/b: {tap: {size: 1}}}", "pools.a/b: 'a/b' must start with"),
        ("pools: {net: {tap: }}", "pools.net.tap: expected an object"),
        ("pools: {net: {tap: {}}}", "pools.net.tap.size: required"),
        ("pools: {net: {tap: {size: 0}}}", "pools.net.tap.size: expected a number from 1 to 1024"),
        (
            "pools: {net: {tap: {size: 4, refill_below: 5}}}",
            "pools.net.tap.refill_below: expected a number from 1 to 4",
        ),
        (
            "pools: {net: {tap: {count: 4}}}",
            r"pools.net.tap.count: unknown key \(value 4\); known are .*, size",
        ),
        *(
            (f"pools: {{net: {{{m}: {{size: 4}}}}}}", f"pools.net.{m}: a pool is of mode tap or vh")
            for m in ("veth", "tc", "macvtap", "x")
        ),
    ],
)
def test_a_wrong_pool_is_named(load: Load, text: str, message: str) -> None:
    with pytest.raises(REFUSED, match=message):
        load(text)


def test_the_command_line_goes_first() -> None:
    assert settings.with_db(Settings(), "tcp:127.0.0.1:1").ovs.db == "tcp:127.0.0.1:1"
    with pytest.raises(BadConfig, match="--ovs-db: expected"):
        settings.with_db(Settings(), "db.sock")
