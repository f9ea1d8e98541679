"""Fixtures for everything that runs on a node, and the check that nothing is left behind."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.testbed import snapshot
from bench.testbed.node import Node, exit_on_sigterm
from bench.testbed.snapshot import Snapshot
from cni.kernel.netns import libc

CLONE_NEWNS = 0x20000
MACHINE_MODES = ("macvtap", "vhostuser")  # with device nodes, with huge pages
MS_REC, MS_PRIVATE = 0x4000, 0x40000
BEFORE = pytest.StashKey[Snapshot]()
TOLD = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TOLD] = []
    snapshot.adopt_orphans()
    exit_on_sigterm()
    if os.geteuid() == 0:
        own_mounts()


def own_mounts() -> None:
    """What the other workers mount is not seen here."""
    if libc.unshare(CLONE_NEWNS) or libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "cannot get a mount namespace")


def pytest_itemcollected(item: pytest.Item) -> None:
    """As early as that: xdist reads the groups before our modifyitems is called."""
    parts = Path(item.path).parts
    if os.geteuid() != 0 and "unit" not in parts:
        item.add_marker(pytest.mark.skip(reason="needs root: namespaces and links"))
    if "vm" in parts or any(mode in item.nodeid for mode in MACHINE_MODES):
        item.add_marker(pytest.mark.machine)
    item.add_marker(pytest.mark.xdist_group(lane(item)))


def lane(item: pytest.Item) -> str:
    """The tests that one worker gets: all that are marked `machine`, else those of a module, or of
    one of the ways that it goes through.
    """
    if item.get_closest_marker("machine"):
        return "machine"
    assert isinstance(item, pytest.Function)
    way = item.callspec.params.get("way") if hasattr(item, "callspec") else None
    return f"{item.path.name} {getattr(way, 'name', way)}"


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        session.config.stash[BEFORE] = snapshot.take()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["told"] = session.config.stash[TOLD]
        return
    # What no single test can be asked for while others run beside it.
    left = snapshot.left_behind(session.config.stash[BEFORE])
    if left := [what for what in left if not what.startswith("process ")]:  # the workers
        session.config.stash[TOLD].append(f"left behind: {left}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[TOLD] += getattr(node, "workeroutput", {}).get("told", [])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in config.stash[TOLD]:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def told(request: pytest.FixtureRequest) -> list[str]:
    """Lines for the end of the run: figures that nothing is asserted of."""
    return request.config.stash[TOLD]


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Links, namespaces, qdiscs, mounts, processes and files are as they were before the test, and
    huge pages and device nodes where it is marked `machine`.

    Its own fixtures are given back by then; a node of the module counts with all it contains.
    """
    node = request.getfixturevalue("node") if "node" in request.fixturenames else None
    shared = request.node.get_closest_marker("machine") is not None
    before, inside = snapshot.take(shared), node.contents() if node else frozenset()
    yield
    left = snapshot.left_behind(before, shared)
    left += sorted(node.contents() - inside) if node and node.daemon else []
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A node with vmlinkd running, shared by the module's tests."""
    with Node() as made:
        made.start()
        made.run(["ip", "link", "add", "br0", "address", "02:00:00:00:00:b0", "type", "bridge"])
        yield made


@pytest.fixture
def pod(node: Node) -> Iterator[Path]:
    """The namespace of a pod, by its path."""
    path = node.pod()
    yield path
    node.lab.drop(path)
