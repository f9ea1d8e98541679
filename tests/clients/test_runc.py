"""runc with vmlink-hook, set in a bundle's config.json or added by the wrapper."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.testbed import probes
from bench.testbed.guest import Guest
from bench.testbed.node import BIN, PLUGINS, Node
from tests.clients.clientkit import CGROUP, Machine, rootfs

pytestmark = pytest.mark.machine  # it boots a guest

HOOK = str(BIN / "vmlink-hook")
NETNS = "/run/netns/sandbox"
DESCRIPTION = "/run/vmlink/devices/sandbox.json"


@pytest.fixture
def foreign(node: Node, machine: Machine) -> Iterator[Path]:
    """A namespace with the plain veth of another plugin."""
    machine.run("ip", "netns", "add", "sandbox")
    ipam = node.ipam("10.4.0.0/24", routes=["0.0.0.0/0"])
    conf = {"cniVersion": "1.0.0", "name": "foreign", "type": "ptp", "ipam": ipam}
    netns = machine.path(NETNS)
    node.call("ADD", conf, "sandbox", netns, plugin=PLUGINS / "ptp").expect()
    yield netns
    node.call("DEL", conf, "sandbox", netns, plugin=PLUGINS / "ptp").expect()
    machine.run("ip", "netns", "del", "sandbox")


@pytest.fixture
def bundle(machine: Machine, foreign: Path, tmp_path: Path) -> Iterator[Path]:
    rootfs(tmp_path / "rootfs")
    machine.run("runc", "spec", "--bundle", str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    config["process"].update(terminal=False, args=["/bin/sleep", "1000"])
    config["linux"]["cgroupsPath"] = f"/{CGROUP}/sandbox"
    for namespace in config["linux"]["namespaces"]:
        if namespace["type"] == "network":
            namespace["path"] = NETNS
    (tmp_path / "config.json").write_text(json.dumps(config))
    yield tmp_path
    machine.run("runc", "delete", "--force", "sandbox", check=False)


def run(machine: Machine, bundle: Path, *runtime: str) -> None:
    log = bundle / "log"
    command = (*runtime, "run", "--detach", "--bundle", str(bundle), "sandbox")
    assert machine.popen(*command, log=log).wait(20) == 0, log.read_text()


def described(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.path(DESCRIPTION).read_text())
    return found


def links(node: Node, netns: Path) -> list[str]:
    shown = json.loads(node.run(["ip", "-json", "link"], netns).stdout)
    return sorted(link["ifname"] for link in shown)


def test_the_hook_in_a_bundle_makes_the_sandbox_a_guests(
    node: Node, machine: Machine, foreign: Path, bundle: Path
) -> None:
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    stages = ("createRuntime", "poststop")
    config["hooks"] = {s: [{"path": HOOK, "args": [HOOK, s]}] for s in stages}
    path.write_text(json.dumps(config))
    run(machine, bundle, "runc")
    told = described(machine)
    (device,) = told["devices"]
    assert links(node, foreign) == sorted(["eth0", "lo", device["tap"]])
    with Guest.boot(prefix=machine.enter(*told["exec"]), netns=str(node.path)) as guest:
        (nic,) = guest.nics()
        assert (nic.mac, nic.mtu) == (device["mac"], device["mtu"])
        gateways = [route["gw"] for route in device["routes"] if route["dst"] == "0.0.0.0/0"]
        guest.configure(nic.name, device["addresses"], gateways)
        assert probes.ping(str(node.path), device["addresses"][0].partition("/")[0], 3) > 0
    machine.run("runc", "delete", "--force", "sandbox")
    assert not machine.path(DESCRIPTION).exists()
    assert links(node, foreign) == ["eth0", "lo"]


def test_the_wrapper_adds_the_hook_once(
    node: Node, machine: Machine, foreign: Path, bundle: Path
) -> None:
    wrapped = (HOOK, "wrap", "--", "runc")
    for _ in range(2):
        run(machine, bundle, *wrapped)
        assert len(described(machine)["devices"]) == 1
        machine.run(*wrapped, "delete", "--force", "sandbox")
        assert not machine.path(DESCRIPTION).exists()
    hooks = json.loads((bundle / "config.json").read_text())["hooks"]
    assert {stage: len(entries) for stage, entries in hooks.items()} == {
        "createRuntime": 1,
        "poststop": 1,
    }


def test_a_sandbox_that_cannot_be_made_ready_does_not_start(
    node: Node, machine: Machine, foreign: Path, bundle: Path
) -> None:
    path = bundle / "config.json"
    config = json.loads(path.read_text()) | {"annotations": {"vmlink.mode": "tap"}}
    path.write_text(json.dumps(config))
    with pytest.raises(AssertionError, match="mode: tap does not go with the uplink chained"):
        run(machine, bundle, HOOK, "wrap", "--", "runc")
    assert links(node, foreign) == ["eth0", "lo"]
    assert machine.run("runc", "list", "--quiet") == ""
