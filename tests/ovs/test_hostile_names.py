"""Who names interfaces loads no kernel modules.

For an ioctl about a link that is not there, the kernel executes modprobe with the link's name.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import BIN, Node
from tests.ovs.ovskit import BRIDGE, switched

# Modules that a node may have, and may not have loaded.
NAMES = ("sctp", "dccp", "tipc", "nbd", "can")
CHAINED = {"prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "x", "sandbox": "/n"}]}}
# libuuid, which python-ovs calls once, reads the MACs of the links that have an IPv4 address.
LIBUUID = ("SIOCGIFCONF", "SIOCGIFHWADDR")
HELPER = Path("/proc/sys/kernel/modprobe")

pytestmark = pytest.mark.machine


def ways(name: str) -> dict[str, dict[str, Any]]:
    """Configurations of each mode on each uplink, some with that name for one more link."""
    return {
        "tc": {"mode": "tc", "linux": {"bridge": "lan", "gateway": True}},
        "tc, ovs": {"mode": "tc", "ovs": {"bridge": BRIDGE}},
        "tc, chained": {"mode": "tc", **CHAINED},
        "veth, ovs": {"mode": "veth", "ovs": {"bridge": BRIDGE}},
        "tap": {"mode": "tap", "linux": {"bridge": "lan"}, "tap": {"name": name}},
        "tap, ovs": {"mode": "tap", "ovs": {"bridge": BRIDGE}, "tap": {"name": name}},
        "macvtap": {"mode": "macvtap", "master": "nic"},
        "macvtap, no master": {"mode": "macvtap", "master": name},
        "macvtap, chained": {"mode": "macvtap", **CHAINED},
        "no bridge": {"mode": "tc", "ovs": {"bridge": name}},
    }


WAYS = tuple(ways(""))
WORKS = ("tc", "tc, ovs", "veth, ovs", "tap", "tap, ovs", "macvtap")


def request(node: Node, way: str, name: str) -> None:
    """Call every verb, also when nothing is there, for an interface of that name."""
    conf = {"cniVersion": "1.0.0", "name": "net", "type": "vmlink", **ways(name)[way]}
    if "prevResult" not in conf:
        conf["ipam"] = node.ipam("10.11.0.0/24", routes=["0.0.0.0/0"])
    pod = node.pod()
    try:
        node.call("DEL", conf, "c", pod, name).expect()
        added = node.call("ADD", conf, "c", pod, name)
        assert (added.code == 0) is (way in WORKS), added.raw
        node.call("CHECK", {"prevResult": added.out, **conf}, "c", pod, name)
        node.call("DEL", conf, "c", pod, name).expect()
        node.call("DEL", conf, "c", pod, name).expect()
    finally:
        node.lab.drop(pod)


@pytest.fixture(scope="module")
def nic() -> Iterator[Node]:
    """A node with a switch and a NIC; its vmlinkd is not started."""
    with switched() as made:
        made.run("ip link add nic type veth peer name far".split())
        made.run(["ip", "link", "set", "nic", "up"])
        yield made


def test_no_ioctl_takes_a_name(nic: Node, tmp_path: Path) -> None:
    if not shutil.which("strace"):
        pytest.skip("strace is missing (the package strace)")
    calls = tmp_path / "calls"
    strace = ["strace", "-D", "-f", "-qq", "-e", "trace=ioctl", "-o", str(calls)]
    nic.start([*strace, str(BIN / "vmlinkd")])
    for way in WAYS:
        request(nic, way, NAMES[0])
    nic.stop()
    asked = re.findall(r"ioctl\(\d+, (\w+)", calls.read_text())
    assert "TUNSETIFF" in asked
    assert {name for name in asked if name.startswith("SIOC")} - {*LIBUUID} == set()


@pytest.fixture
def executed(tmp_path: Path) -> Iterator[Path]:
    """The file in which the kernel's modprobe notes its arguments before it does its work."""
    if not HELPER.exists():
        pytest.skip(f"the kernel loads no modules: {HELPER} is missing")
    before = HELPER.read_text().strip()
    helper, log = tmp_path / "modprobe", tmp_path / "executed"
    log.touch()
    helper.write_text(f'#!/bin/sh\necho "$@" >>{log}\nexec {before} "$@"\n')
    helper.chmod(0o755)
    tmp_path.chmod(0o755)
    HELPER.write_text(str(helper))
    yield log
    HELPER.write_text(before)


def test_no_module_is_asked_for(nic: Node, executed: Path) -> None:
    nic.start()
    for way, name in zip(WAYS, itertools.cycle(NAMES)):
        request(nic, way, name)
    nic.stop()
    asked = executed.read_text().split()
    assert [word for word in asked if word.removeprefix("netdev-") in NAMES] == []


def test_the_count_of_modprobe_works(nic: Node, executed: Path) -> None:
    nic.run(["ethtool", "-i", NAMES[0]], check=False)
    assert f"netdev-{NAMES[0]}" in executed.read_text()
