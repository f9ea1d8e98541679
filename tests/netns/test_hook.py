"""The OCI hook on a sandbox whose network another plugin made."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.node import BIN, PLUGINS, Node


def hook(node: Node, stage: str, state: object) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "vmlink-hook"), "--run-dir", str(node.run_dir), stage]
    return subprocess.run(command, input=json.dumps(state), capture_output=True, text=True)


@pytest.fixture
def sandbox(node: Node, pod: Path) -> Iterator[Path]:
    """A namespace with ptp's plain veth in it."""
    conf = {"cniVersion": "1.0.0", "name": "foreign", "type": "ptp"}
    conf["ipam"] = node.ipam("10.4.0.0/24", routes=["0.0.0.0/0"])
    node.call("ADD", conf, "sandbox", pod, plugin=PLUGINS / "ptp").expect()
    yield pod
    node.call("DEL", conf, "sandbox", pod, plugin=PLUGINS / "ptp").expect()


def bundle(directory: Path, netns: Path) -> dict[str, object]:
    namespaces = [{"type": "pid"}, {"type": "network", "path": str(netns)}]
    (directory / "config.json").write_text(json.dumps({"linux": {"namespaces": namespaces}}))
    return {"ociVersion": "", "id": "sandbox", "status": "", "pid": 1, "bundle": str(directory)}


@pytest.mark.parametrize("stage", ["createRuntime", "prestart"])
def test_a_foreign_veth_becomes_ready_for_a_vm(
    node: Node, sandbox: Path, tmp_path: Path, stage: str
) -> None:
    state = bundle(tmp_path, sandbox)
    assert hook(node, stage, state).returncode == 0
    device = json.loads(node.run(node.ctl("device", "sandbox")).stdout)[0]
    assert device["addresses"][0].startswith("10.4.0.")
    assert ["0.0.0.0/0", "10.4.0.1"] in device["routes"]
    links = json.loads(node.run(["ip", "-json", "link"], sandbox).stdout)
    assert device["tap"] in [link["ifname"] for link in links]

    assert hook(node, "poststop", state).returncode == 0
    assert node.run(node.ctl("list", "--json")).stdout.strip() == "[]"
    links = json.loads(node.run(["ip", "-json", "link"], sandbox).stdout)
    assert sorted(link["ifname"] for link in links) == ["eth0", "lo"]


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ([], "expected an object"),
        ({}, "id"),
        ({"id": "a"}, "network namespace"),
        ({"id": "a", "pid": 2**22 + 1}, "cannot open"),
        ({"id": "a", "bundle": "relative"}, "network namespace"),
    ],
)
def test_a_state_that_does_not_tell_enough_is_refused(node: Node, state: object, says: str) -> None:
    done = hook(node, "createRuntime", state)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
