"""A vmlinkd on a kernel before Linux 6.6, which refuses to list the tcx programs of a link."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import Node

# EINVAL for whatever is about tcx.
PROGRAM = """
import ctypes, errno, sys
from cni.daemon import main
from cni.kernel import bpf

class Old:
    def syscall(self, number, command, *args):
        if command in (bpf.PROG_QUERY, bpf.PROG_ATTACH, bpf.PROG_DETACH):
            ctypes.set_errno(errno.EINVAL)
            return -1
        return known.syscall(number, command, *args)

known, bpf.libc = bpf.libc, Old()
sys.exit(main.main())
"""
PREV = {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/n"}]}
CHAINED = {"cniVersion": "1.0.0", "name": "n", "type": "vmlink", "mode": "tc", "prevResult": PREV}


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as made:
        made.start([sys.executable, "-c", PROGRAM])
        yield made


@pytest.fixture
def chained(node: Node, pod: Path) -> Iterator[Path]:
    """A pod with the interface of another plugin."""
    node.run("ip link add eth0 up type veth peer name far".split(), pod)
    yield pod
    node.call("DEL", CHAINED, "c", pod)


def redirects(node: Node, pod: Path) -> list[Any]:
    shown = node.run("tc -json filter show dev eth0 ingress".split(), pod).stdout
    return [each for each in json.loads(shown) if "options" in each]


@pytest.mark.parametrize("engine", ["auto", "mirred"])
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "no record"])
def test_del_of_chained_tc(node: Node, chained: Path, engine: str, recorded: bool) -> None:
    pod = chained
    conf = {**CHAINED, "redirect": engine}
    added = node.call("ADD", conf, "c", pod).expect()
    assert redirects(node, pod)
    node.call("CHECK", {**conf, "prevResult": added}, "c", pod).expect()
    if not recorded:
        for record in (node.run_dir / "state").iterdir():
            record.unlink()
    for _ in range(2):
        node.call("DEL", conf, "c", pod).expect()
    assert redirects(node, pod) == []


def test_tcx_is_refused(node: Node, chained: Path) -> None:
    answer = node.call("ADD", {**CHAINED, "redirect": "tcx"}, "c", chained)
    assert "has no tcx (needs Linux 6.6" in answer.out["msg"]
