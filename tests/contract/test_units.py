"""The systemd units: systemd accepts them, and they allow vmlinkd everything it needs."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import BIN, Node

CONF = Path(__file__).parents[2] / "conf"

# The last test examines what vmlinkd did in the tests before it; one of them uses macvtap.
pytestmark = pytest.mark.machine


def test_systemd_understands_them(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is missing (the package systemd)")
    units = [tmp_path / f"vmlinkd.{kind}" for kind in ("service", "socket")]
    for unit in units:
        text = (CONF / unit.name).read_text()
        unit.write_text(text.replace("/usr/local/bin", str(BIN)))
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, units)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_calls_the_service_safe_enough() -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is missing (the package systemd)")
    unit = str(CONF / "vmlinkd.service")
    asked = ["systemd-analyze", "security", "--offline=yes", "--threshold=40", "--no-pager", unit]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_number_of_failed_starts_is_the_end() -> None:
    units = {kind: (CONF / f"vmlinkd.{kind}").read_text() for kind in ("service", "socket")}
    limits = {
        kind: re.findall(r"^\w*LimitIntervalSec=.*", text, re.M) for kind, text in units.items()
    }
    assert limits == {
        "service": ["StartLimitIntervalSec=0"],
        "socket": ["TriggerLimitIntervalSec=0"],
    }


def setting(name: str) -> list[str]:
    """The values of a setting in vmlinkd.service."""
    line: str
    (line,) = re.findall(f"{name}=(.*)", (CONF / "vmlinkd.service").read_text())
    return line.split()


def bounded() -> list[str]:
    """The command that executes another with the unit's capabilities and no others."""
    names = (name.removeprefix("CAP_").lower() for name in setting("CapabilityBoundingSet"))
    bounds = ",".join(["-all", *(f"+{name}" for name in names)])
    return ["setpriv", "--no-new-privs", "--bounding-set", bounds, "--inh-caps", "-all"]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file in which strace records the system calls of `confined`."""
    return tmp_path_factory.mktemp("strace") / "calls"


@pytest.fixture(scope="module")
def confined(calls: Path) -> Iterator[Node]:
    """A node whose vmlinkd has only the capabilities that the unit grants."""
    # -D: vmlinkd itself, not strace, is the child process that Node stops.
    strace = ["strace", "-D", "-f", "-qq", "-o", str(calls)] if shutil.which("strace") else []
    with Node() as node:
        node.run("ip link add nic type veth peer name far".split())
        node.run(["ip", "link", "set", "nic", "up"])
        node.start([*strace, *bounded(), str(BIN / "vmlinkd")])
        yield node


@pytest.mark.parametrize(
    "keys",
    [
        {"mode": "tc", "linux": {"bridge": "br0", "gateway": True}},
        {"mode": "tap", "linux": {"bridge": "br0"}, "tap": {"owner": 1000, "group": 1000}},
        {"mode": "veth", "linux": {"bridge": "br0"}},
        {"mode": "macvtap", "master": "nic", "tap": {"owner": 1000}},
    ],
    ids=lambda keys: keys["mode"],
)
def test_the_units_capabilities_are_enough(confined: Node, keys: dict[str, Any]) -> None:
    rate = {"ingressRate": 8000000, "ingressBurst": 800000}
    rates = rate | {"egressRate": 8000000, "egressBurst": 800000}
    ipam = confined.ipam("10.11.0.0/24", routes=["0.0.0.0/0"])
    conf = {"cniVersion": "1.0.0", "name": "net", "type": "vmlink", "ipam": ipam}
    conf |= {"bandwidth": rates, **keys}
    pod = confined.pod()
    try:
        result = confined.call("ADD", conf, "c", pod).expect()
        confined.call("CHECK", {**conf, "prevResult": result}, "c", pod).expect()
        confined.call("DEL", conf, "c", pod).expect()
    finally:
        confined.lab.drop(pod)


PLAIN_DEV = """
mount -t tmpfs dev "$0"; mkdir "$0/net" "$0/shm"; mount --bind /dev/shm "$0/shm"
mknod "$0/net/tun" c 10 200; mknod "$0/null" c 1 3; mknod "$0/urandom" c 1 9
mount --rbind "$0" /dev; exec "$@"
"""


def test_a_macvtap_where_dev_is_no_devtmpfs(tmp_path: Path) -> None:
    """The kernel makes no nodes there, so that vmlinkd makes the macvtap's (mknod(2))."""
    with Node() as node:
        node.run("ip link add nic up type veth peer name far".split())
        private = ["unshare", "--mount", "sh", "-ec", PLAIN_DEV, str(tmp_path)]
        node.start([*private, *bounded(), str(BIN / "vmlinkd")])
        conf = {"cniVersion": "1.0.0", "name": "net", "type": "vmlink", "mode": "macvtap"}
        pod = node.pod()
        result = node.call("ADD", {**conf, "master": "nic"}, "c", pod).expect()
        check = {**conf, "master": "nic", "prevResult": result}
        node.call("CHECK", check, "c", pod).expect()
        node.call("DEL", {**conf, "master": "nic"}, "c", pod).expect()
        node.lab.drop(pod)


def expand(name: str) -> set[str]:
    """The system calls in one of systemd's sets."""
    command = ["systemd-analyze", "--no-pager", "syscall-filter", name]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    words = [line.strip() for line in listed if line.startswith("    ")]
    names = {word for word in words if not word.startswith(("#", "@"))}
    return names.union(*(expand(word) for word in words if word.startswith("@")))


def test_the_units_system_calls_are_enough(confined: Node, calls: Path) -> None:
    """For everything that vmlinkd did in the tests before this one."""
    for tool in ("strace", "systemd-analyze"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is missing (the packages strace and systemd)")
    confined.stop()
    used = set(re.findall(r"^\d+ +(\w+)\(", calls.read_text(), re.M))
    assert "setns" in used
    allowed = setting("SystemCallFilter")
    sets = [expand(name) for name in allowed if name.startswith("@")]
    assert used - {*allowed}.union(*sets) == set()
