"""The client under test, without and with somebody who listens."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.fakedaemon import FakeDaemon

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source at hand, an installed one may be older."""
    target = tmp_path_factory.mktemp("bin")
    build = [sys.executable, "-W", "ignore", "setup.py", "-q", "build_scripts"]
    flags = os.environ.get("CFLAGS", "") + " -Werror"
    env = {**os.environ, "CFLAGS": flags}
    subprocess.run([*build, "--build-dir", str(target)], cwd=ROOT, env=env, check=True)
    return target / "vmlink"


@pytest.fixture
def absent(client: Path) -> Iterator[FakeDaemon]:
    home = Path(tempfile.mkdtemp(prefix="vml"))
    absent = FakeDaemon(client, home)
    yield absent
    absent.close()
    shutil.rmtree(home)


@pytest.fixture
def daemon(absent: FakeDaemon) -> FakeDaemon:
    absent.listen()
    return absent
