"""The database over TCP and TLS, with the same key on both sides."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench.testbed.node import Node
from cni.config import settings
from cni.config.settings import Ovs, Settings
from cni.errors import BadConfig, TryAgain
from cni.ovs import open_database

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
REMOTES = {"tcp": "tcp:127.0.0.1:6640", "ssl": "ssl:127.0.0.1:6640"}


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A node without vmlinkd."""
    with Node() as made:
        yield made


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        request = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test".split()
        files = ["-keyout", f"{where}/{name}.key", "-out", f"{where}/{name}.pem"]
        subprocess.run([*request, *files], check=True, capture_output=True)
    return where


@contextmanager
def served(node: Node, remote: str, keys: Path, where: Path) -> Iterator[None]:
    subprocess.run(["ovsdb-tool", "create", str(where / "db"), SCHEMA], check=True)
    tls = [f"--private-key={keys}/ours.key", f"--certificate={keys}/ours.pem"]
    argv = ["ovsdb-server", str(where / "db"), f"--remote={remote}", *tls]
    argv += [f"--ca-cert={keys}/ours.pem", f"--unixctl={where}/ctl", "--verbose=off"]
    with node.namespace.entered():
        server = subprocess.Popen(argv)
    try:
        yield
    finally:
        server.terminate()
        server.wait(10)


@pytest.mark.parametrize("kind", REMOTES)
def test_a_server_elsewhere(node: Node, keys: Path, tmp_path: Path, kind: str) -> None:
    kind_, host, port = REMOTES[kind].split(":")
    (text := tmp_path / "vmlinkd.yaml").write_text(
        f"ovs:\n  db: {REMOTES[kind]}\n  private_key: {keys}/ours.key\n"
        f"  certificate: {keys}/ours.pem\n  ca_cert: {keys}/ours.pem\n"
    )
    ours = settings.load(text, modes=(), poolable=()).ovs
    with served(node, f"p{kind_}:{port}:{host}", keys, tmp_path), node.namespace.entered():
        with closing(open_database(ours, "test")) as database:
            assert database.look(10).bridges == {}
        stranger = open_database(replace(ours, ca_cert=f"{keys}/theirs.pem"), "test")
        with closing(stranger):
            if kind == "tcp":
                assert stranger.look(10).connected
            else:
                with pytest.raises(TryAgain, match="no answer from ssl:"):
                    stranger.look(0.5)


@pytest.mark.parametrize(("file", "key"), [("ca_cert", "ca_cert"), ("private_key", "certificate")])
def test_keys_of_no_use_are_named_at_the_start(keys: Path, file: str, key: str) -> None:
    good = Ovs("tcp:127.0.0.1:1", f"{keys}/ours.key", f"{keys}/ours.pem", f"{keys}/ours.pem")
    bad = replace(Settings(), ovs=replace(good, **{file: __file__}))
    with pytest.raises(BadConfig, match=f"^ovs.{key}: cannot use"):
        settings.with_db(bad, REMOTES["ssl"])
    assert settings.with_db(replace(Settings(), ovs=good), REMOTES["ssl"]).ovs.db == REMOTES["ssl"]
