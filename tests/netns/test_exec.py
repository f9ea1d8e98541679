"""`vmlinkctl exec` passes on the descriptors that `vmlinkctl device` names."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import Node
from cni.kernel.tuntap import TUN
from cni.vmm import descriptors

# Prints its open descriptors, except that of the listing, and the arguments that it was given.
PROGRAM = """
import json, os, sys
fds = {}
for fd in os.listdir("/proc/self/fd"):
    try:
        fds[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        pass
print(json.dumps([fds, sys.argv[1:]]))
"""
LINUX = {"linux": {"bridge": "br0"}}
NICS: dict[str, dict[str, Any]] = {
    "tc": {"mode": "tc", **LINUX},
    "tc, two queues": {"mode": "tc", "queues": 2, **LINUX},
    "tap": {"mode": "tap", **LINUX},
    "tap, two queues": {"mode": "tap", "queues": 2, **LINUX},
}


@pytest.fixture
def attached(node: Node, pod: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """The container `c` with an interface for each network that the parameter names."""
    base = {"cniVersion": "1.0.0", "name": "net", "type": "vmlink"}
    with ExitStack() as stack:
        for n, name in enumerate(request.param):
            conf = {**base, **NICS[name]}
            stack.callback(node.call, "DEL", conf, "c", pod, f"eth{n}")
            node.call("ADD", conf, "c", pod, f"eth{n}").expect()
        yield sum(NICS[name].get("queues", 1) for name in request.param)


def numbers(arguments: list[str], key: str) -> list[int]:
    """The descriptors in the options `fd`, `fds`, `vhostfd` or `vhostfds` of QEMU's arguments."""
    found = [re.search(rf"\b{key}s?=([\d:]+)", each) for each in arguments]
    return [int(number) for each in found if each for number in each[1].split(":")]


@pytest.mark.parametrize(
    "attached",
    [[name] for name in NICS] + [["tc", "tap, two queues", "tc"]],
    indirect=True,
    ids=str,
)
def test_a_program_gets_the_descriptors_that_were_named(node: Node, attached: int) -> None:
    shown = node.run(node.ctl("device", "--format", "qemu", "c")).stdout.split()
    program = [sys.executable, "-c", PROGRAM]
    opened, arguments = json.loads(node.run(node.ctl("exec", "c", "--", *program)).stdout)
    assert arguments == shown
    taps, vhost = numbers(arguments, "fd"), numbers(arguments, "vhostfd")
    assert len(taps) == attached
    assert len(vhost) == (attached if descriptors.have_vhost() else 0)
    passed = {int(fd): path for fd, path in opened.items() if path in (TUN, descriptors.VHOST_NET)}
    assert passed == dict.fromkeys(taps, TUN) | dict.fromkeys(vhost, descriptors.VHOST_NET)
    assert sorted(passed) == [*range(3, 3 + len(passed))]
