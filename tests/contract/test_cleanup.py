"""DEL and GC undo what can be undone: a configuration that ADD refuses is no reason to fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import Node
from tests.contract.cnikit import (
    ABSENT,
    KEY,
    attached,
    config,
    fails,
    left,
    links,
    records,
    run,
    silent,
    valid,
)

REFUSED: list[tuple[int, dict[str, Any], dict[str, str]]] = [
    (1, {"cniVersion": "9.9.9"}, {}),
    (2, {"bogus": 1}, {}),
    (2, {"linux": {"bridge": "br0", "bogus": 1}}, {}),
    (4, {}, {"CNI_ARGS": "FOO=1"}),
    (4, {}, {"CNI_ARGS": "TC_REDIRECT_TAP_UID=root"}),
    (4, {}, {"CNI_IFNAME": "a-name-that-is-too-long"}),
    (7, {"mtu": 5}, {}),
    (7, {"mode": "bogus"}, {}),
    (7, {"linux": 5}, {}),
    (7, {"name": "a/b"}, {}),
    (7, {"ipam": {"type": "no-such-plugin"}}, {}),
    (7, {"ipam": {"type": "host-local", "dataDir": 5}}, {}),
    (7, {"linux": ABSENT, "ipam": ABSENT, "prevResult": {"ips": [{"address": "x"}]}}, {}),
    (7, {"runtime": "kata", "ipam": ABSENT}, {}),
]


@pytest.mark.parametrize(("code", "change", "env"), REFUSED)
def test_del_after_a_refused_add(
    node: Node, idle: Path, code: int, change: dict[str, Any], env: dict[str, str]
) -> None:
    fails(run(node, "ADD", idle, config(node, **change), **env), code)
    for netns in (str(idle), ""):
        silent(run(node, "DEL", netns, config(node, **change), **env))


@pytest.mark.parametrize(
    "change", [{"bogus": 1}, {"mtu": 5}, {"ipam": {"type": "no-such-plugin"}}, {"linux": 5}]
)
def test_gc_after_a_refused_add(node: Node, idle: Path, change: dict[str, Any]) -> None:
    silent(run(node, "GC", idle, config(node, **valid(), **change)))


@pytest.mark.parametrize("stdin", [b"", b"\xff", b"{}", b'{"cniVersion": "9", "name": 5}'])
def test_with_a_record_del_needs_no_configuration(node: Node, pod: Path, stdin: bytes) -> None:
    run(node, "ADD", pod, config(node)).expect()
    silent(run(node, "DEL", pod, stdin, CNI_ARGS="bogus"))
    assert links(pod) == {"lo"}
    assert not records(node)
    assert not list(node.ipam_dir.glob("net/[1f]*"))


@pytest.mark.parametrize(
    "change",
    [
        {"bogus": 1},
        {"mode": "bogus"},
        {"mtu": 5},
        {"cniVersion": "9.9.9"},
        {"linux": {"bridge": "br0", "vlan": 9999}},
        {"prevResult": 5},
        {"tap": {"name": "guest0", "owner": "root"}},
    ],
)
@pytest.mark.parametrize("mode", ["tc", "veth", "tap"])
def test_without_a_record_del_undoes_what_can_be_read(
    node: Node, pod: Path, mode: str, change: dict[str, Any]
) -> None:
    tap = {"tap": {"name": "guest0"}} if mode == "tc" and "tap" in change else {}
    before = node.contents()
    with attached(node, pod, config(node, mode=mode, **tap)):
        (record,) = records(node)
        record.unlink()
        silent(run(node, "DEL", pod, config(node, **{"mode": mode, **change})))
        assert links(pod) == left(mode)
        assert node.contents() == before
        assert not list(node.ipam_dir.glob("net/[1f]*"))


def test_what_a_del_passes_over_is_in_the_log(node: Node, idle: Path) -> None:
    silent(run(node, "DEL", idle, config(node, cniVersion="9.9.9", bogus=7)))
    log = node.log.read_text()
    told = [json.loads(line) for line in log.splitlines() if '"passed_over"' in line]
    assert told[-1]["passed_over"][0].startswith("cniVersion: 9.9.9 is not served")
    assert f"{KEY}: undone without what cannot be read: bogus" in log
