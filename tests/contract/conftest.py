"""The client under test, with and without a listening daemon, and nodes for the real one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.testbed.node import Node
from tests.contract.cnikit import links
from tests.contract.fakedaemon import FakeDaemon

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client, built from the source at hand: an installed one may be older."""
    target = tmp_path_factory.mktemp("bin")
    build = [sys.executable, "-W", "ignore", "setup.py", "-q", "build_scripts"]
    flags = os.environ.get("CFLAGS", "") + " -Werror"
    env = {**os.environ, "CFLAGS": flags}
    subprocess.run([*build, "--build-dir", str(target)], cwd=ROOT, env=env, check=True)
    return target / "vmlink"


@pytest.fixture
def absent(client: Path) -> Iterator[FakeDaemon]:
    """A daemon that does not listen."""
    home = Path(tempfile.mkdtemp(prefix="vml"))
    absent = FakeDaemon(client, home)
    yield absent
    absent.close()
    shutil.rmtree(home)


@pytest.fixture
def daemon(absent: FakeDaemon) -> FakeDaemon:
    """A daemon that listens."""
    absent.listen()
    return absent


@pytest.fixture(scope="module")
def idle(node: Node) -> Iterator[Path]:
    """A pod that no call in the module may change."""
    path = node.pod()
    yield path
    assert links(path) == {"lo"}
    node.lab.drop(path)


@pytest.fixture
def mortal() -> Iterator[Node]:
    """A node on which the test starts and stops vmlinkd; it must end up as bare as it began."""
    with Node() as node:
        node.run(["ip", "link", "add", "br0", "type", "bridge"])
        before = node.contents()
        yield node
        assert node.contents() == before


@pytest.fixture
def home(mortal: Node) -> Path:
    """A pod's namespace, which is deleted with the node."""
    return mortal.pod()
