"""The OCI hook on a sandbox whose network another plugin made."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import BIN, PLUGINS, Node
from cni.spec.types import AttachmentKey


def hook(node: Node, stage: str, state: object) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "vmlink-hook"), "--run-dir", str(node.run_dir), stage]
    return subprocess.run(command, input=json.dumps(state), capture_output=True, text=True)


@pytest.fixture
def sandbox(node: Node, pod: Path) -> Iterator[Path]:
    """A namespace to which the plugin ptp has attached a plain veth."""
    conf: dict[str, Any] = {"cniVersion": "1.0.0", "name": "foreign", "type": "ptp"}
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
    (default,) = (r for r in device["routes"] if r["dst"] == "0.0.0.0/0")
    assert (default["gw"], default["table"]) == ("10.4.0.1", 254)
    links = json.loads(node.run(["ip", "-json", "link"], sandbox).stdout)
    assert device["tap"] in [link["ifname"] for link in links]

    assert hook(node, "poststop", state).returncode == 0
    assert node.run(node.ctl("list", "--json")).stdout.strip() == "[]"
    links = json.loads(node.run(["ip", "-json", "link"], sandbox).stdout)
    assert sorted(link["ifname"] for link in links) == ["eth0", "lo"]


def description(node: Node) -> Any:
    path = node.run_dir / "devices/sandbox.json"
    return json.loads(path.read_text()) if path.exists() else None


def test_the_description_tells_a_launcher_what_to_execute(
    node: Node, sandbox: Path, tmp_path: Path
) -> None:
    state = bundle(tmp_path, sandbox)
    for _ in range(2):  # as when a runtime calls createRuntime and prestart for one container
        assert hook(node, "createRuntime", state).returncode == 0
    told = description(node)
    assert told["devices"] == json.loads(node.run(node.ctl("device", "sandbox")).stdout)
    assert told["exec"] == node.ctl("exec", "sandbox", "--")
    assert hook(node, "poststop", state).returncode == 0
    assert description(node) is None


def test_what_a_former_sandbox_of_the_name_has_left_is_cleaned_up(
    node: Node, sandbox: Path, tmp_path: Path
) -> None:
    other = node.pod()
    conf: dict[str, Any] = {"cniVersion": "1.0.0", "name": "foreign", "type": "ptp"}
    conf["ipam"] = node.ipam("10.4.0.0/24")
    node.call("ADD", conf, "former", other, plugin=PLUGINS / "ptp").expect()
    assert hook(node, "createRuntime", bundle(tmp_path, other)).returncode == 0
    before = description(node)
    node.call("DEL", conf, "former", other, plugin=PLUGINS / "ptp").expect()
    node.lab.drop(other)
    state = bundle(tmp_path, sandbox)
    assert hook(node, "createRuntime", state).returncode == 0
    assert description(node)["devices"][0]["netns"] == str(sandbox) != before["devices"][0]["netns"]
    assert hook(node, "poststop", state).returncode == 0


@pytest.mark.parametrize("mode", ["tc", "veth"])
def test_what_vmlink_has_made_itself_is_described_and_left_alone(
    node: Node, pod: Path, tmp_path: Path, mode: str
) -> None:
    conf: dict[str, Any] = {"cniVersion": "1.0.0", "name": "own", "type": "vmlink", "mode": mode}
    conf |= {"linux": {"bridge": "br0"}, "ipam": node.ipam("10.5.0.0/24")}
    node.call("ADD", conf, "another-id", pod).expect()
    state = bundle(tmp_path, pod)
    done = hook(node, "createRuntime", state)
    assert done.returncode == 0
    if mode == "tc":
        assert description(node)["exec"][-2:] == ["another-id", "--"]
    else:
        assert "sandbox has no interface for a VM" in done.stderr
    assert hook(node, "poststop", state).returncode == 0
    (row,) = json.loads(node.run(node.ctl("list", "--json")).stdout)
    assert row["container"] == "another-id"
    node.call("DEL", conf, "another-id", pod).expect()


def test_the_nics_are_described_as_they_were_attached(
    node: Node, pod: Path, tmp_path: Path
) -> None:
    conf: dict[str, Any] = {"cniVersion": "1.0.0", "name": "own", "type": "vmlink"}
    conf |= {"linux": {"bridge": "br0"}}
    names = ["eth1", "net10", "net9", "eth0", "net1"]
    for ifname in names:
        node.call("ADD", conf, "another-id", pod, ifname).expect()
    state = bundle(tmp_path, pod)
    assert hook(node, "createRuntime", state).returncode == 0
    assert [device["ifname"] for device in description(node)["devices"]] == names
    devices = json.loads(node.run(node.ctl("device", "another-id")).stdout)
    assert [device["ifname"] for device in devices] == names
    assert hook(node, "poststop", state).returncode == 0
    for ifname in names:
        node.call("DEL", conf, "another-id", pod, ifname).expect()


@pytest.mark.parametrize("kind", ["io.kubernetes.cri.container-type", "host network"])
def test_containers_without_a_network_of_their_own_are_passed_over(
    node: Node, sandbox: Path, tmp_path: Path, kind: str
) -> None:
    state = bundle(tmp_path, sandbox)
    if kind == "host network":
        (tmp_path / "config.json").write_text('{"linux": {"namespaces": [{"type": "pid"}]}}')
    else:
        state["annotations"] = {kind: "container"}
    assert hook(node, "createRuntime", state).returncode == 0
    assert description(node) is None
    assert node.run(node.ctl("list", "--json")).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("annotations", "says"),
    [
        ({"vmlink.mode": "tap"}, "mode: tap does not go with the uplink chained"),
        ({"vmlink.queues": "many"}, "queues: expected a number from 1 to 256, found 'many'"),
    ],
)
def test_annotations_are_judged_by_vmlinkd(
    node: Node, sandbox: Path, tmp_path: Path, annotations: dict[str, str], says: str
) -> None:
    state = bundle(tmp_path, sandbox) | {"annotations": annotations}
    done = hook(node, "createRuntime", state)
    assert (done.returncode, description(node)) == (1, None)
    assert says in done.stderr


def test_all_interfaces_or_none(node: Node, sandbox: Path, tmp_path: Path) -> None:
    """The second interface cannot be adopted, because the name of its tap is taken."""
    taken = AttachmentKey("sandbox", "eth1").tap_link
    for command in (
        f"ip link add eth1 type veth peer name {taken}",
        "ip address add 10.99.0.1/24 dev eth1",
    ):
        node.run(command.split(), sandbox)
    state = bundle(tmp_path, sandbox)
    done = hook(node, "createRuntime", state)
    assert (done.returncode, description(node)) == (1, None), done.stderr
    assert "ADD of eth1" in done.stderr
    assert node.run(node.ctl("list", "--json")).stdout.strip() == "[]"
    assert "clsact" not in node.run("tc qdisc show dev eth0".split(), sandbox).stdout
    node.run("ip link del eth1".split(), sandbox, check=False)


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
