"""Fixtures for tests that need a node, and the check that no test leaves anything behind."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from bench.testbed import snapshot, switch
from bench.testbed.node import Node, exit_on_sigterm
from bench.testbed.snapshot import Snapshot
from bench.testbed.switch import Datapath
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
    """Hide from this process what the other workers mount."""
    if libc.unshare(CLONE_NEWNS) or libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "cannot get a mount namespace")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark each test; in pytest_collection_modifyitems it would be too late for xdist's groups."""
    parts = Path(item.path).parts
    if os.geteuid() != 0 and "unit" not in parts:
        item.add_marker(pytest.mark.skip(reason="needs root: namespaces and links"))
    if "vm" in parts or any(mode in item.nodeid for mode in MACHINE_MODES):
        item.add_marker(pytest.mark.machine)
    item.add_marker(pytest.mark.xdist_group(lane(item)))


def lane(item: pytest.Item) -> str:
    """Name the group of tests that must share one worker.

    All tests marked `machine` are one group. Otherwise each module is a group, or each value of
    its parameter `way` where it has one.
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
    # Only now can everything be checked: other workers were busy while each test ran.
    left = snapshot.left_behind(session.config.stash[BEFORE])
    # The workers are processes that still run.
    if left := [what for what in left if not what.startswith("process ")]:
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
    """Lines printed at the end of the run: figures that no test asserts anything about."""
    return request.config.stash[TOLD]


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves links, namespaces, qdiscs, mounts, processes or files behind.

    For a test marked `machine`, huge pages and device nodes count as well. The test's own fixtures
    have been torn down by then; inside a node that the module shares, everything is compared.
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
    """A node on which vmlinkd runs, shared by the tests of a module."""
    with Node() as made:
        made.start()
        made.run(["ip", "link", "add", "br0", "address", "02:00:00:00:00:b0", "type", "bridge"])
        yield made


@pytest.fixture(scope="module", params=get_args(Datapath))
def datapath(request: pytest.FixtureRequest) -> Datapath:
    """The datapath of Open vSwitch: both where the kernel has one as well."""
    kind: Datapath = request.param
    if reason := switch.missing(datapath=kind):
        pytest.skip(reason)
    return kind


@pytest.fixture
def pod(node: Node) -> Iterator[Path]:
    """The path of a pod's network namespace."""
    path = node.pod()
    yield path
    node.lab.drop(path)
