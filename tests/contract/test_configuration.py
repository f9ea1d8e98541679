"""What can be wrong with the configuration, by verb and version: the client and a real vmlinkd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import Node
from tests.contract.cnikit import (
    ABSENT,
    NEEDS,
    SINCE,
    VERSIONS,
    config,
    fails,
    full,
    has,
    refuses,
    run,
    silent,
)

VERBS = list(NEEDS)
MIB = 1 << 20


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "stdin",
    [
        b"",
        b"{",
        b"{}{}",
        b"\xff\xfe{}",
        b'{"cniVersion": "1.0.0", "name": "\xff"}',
        b"[]",
        b"1",
        b"null",
        b'"text"',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"cniVersion": 5}',
    ],
    ids=lambda stdin: repr(stdin[:20]),
)
def test_undecodable(node: Node, idle: Path, verb: str, stdin: bytes) -> None:
    refuses(verb, run(node, verb, idle, stdin), 6)


@pytest.mark.parametrize("verb", VERBS)
def test_stdin_of_a_mebibyte_and_more(node: Node, pod: Path, verb: str) -> None:
    conf = full(node)
    if verb == "CHECK":
        conf["prevResult"] = run(node, "ADD", pod, conf).expect()
    stdin = json.dumps(conf).encode().ljust(MIB)
    answer = run(node, verb, pod, stdin)
    assert answer.code == 0
    assert bool(answer.raw) == (verb == "ADD")
    silent(run(node, "DEL", pod, stdin))
    refuses(verb, run(node, verb, pod, stdin + b" "), 6, "stdin", str(MIB))


def test_message_is_bounded(node: Node, idle: Path) -> None:
    """Quoted, this value is five times as long and would not fit into an answer."""
    for _ in range(2 * 16 + 1):  # more than there are workers, each of which must survive it
        raw = json.dumps(config(node, mode="@")).replace("@", "\x7f" * (MIB - 1000)).encode()
        assert len(fails(run(node, "ADD", idle, raw), 7, "mode", "tc, veth")) < 1 << 16


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("version", [ABSENT, "", "0.1.0", "0.2.0", "0.3.0", "1.2.0", "2.0.0", "x"])
def test_version_that_is_not_served(node: Node, idle: Path, verb: str, version: Any) -> None:
    answer = run(node, verb, idle, full(node, cniVersion=version))
    refuses(verb, answer, 1, "cniVersion", "0.1.0" if version is ABSENT else version, *VERSIONS)


@pytest.mark.parametrize(
    ("verb", "version"), [(v, w) for v in SINCE for w in VERSIONS if not has(v, w)]
)
def test_verb_that_the_version_has_not(node: Node, idle: Path, verb: str, version: str) -> None:
    answer = run(node, verb, idle, full(node, cniVersion=version))
    fails(answer, 1, verb, SINCE[verb], version)
    assert answer.out["cniVersion"] == version


def nested(path: str, value: Any) -> dict[str, Any]:
    """Return for `linux.vlan` and 5: {"linux": {"bridge": "br0", "vlan": 5}}."""
    outer, _, inner = path.partition(".")
    if not inner:
        return {outer: value}
    base = {"bridge": "br0"} if outer == "linux" else {}
    return {outer: {**base, **nested(inner, value)}}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("path", ["bogus", "Mode", "linux.bogus", "tap.bogus", "bridge"])
def test_unknown_key(node: Node, idle: Path, verb: str, path: str) -> None:
    answer = run(node, verb, idle, full(node, **nested(path, {"some": "value"})))
    if verb == "GC":  # asks for the network's name and IPAM alone
        silent(answer)
    else:
        refuses(verb, answer, 2, path, "{'some': 'value'}")


WRONG: list[tuple[str, list[Any], tuple[str, ...]]] = [
    ("mode", ["x", None, 5, [], {}], ("tc", "veth")),
    ("redirect", ["x", "TCX"], ("auto", "tcx", "cls_bpf", "mirred")),
    ("resultStyle", ["x"], ("plain", "tc-redirect-tap")),
    ("mtu", [0, 67, 65522, -1, "1500", True, 1.5, float("nan"), 10**30], ("68", "65521")),
    ("queues", [0, 257, "2", False], ("1", "256")),
    ("mac", ["x", "01:00:00:00:00:01", "00:00:00:00:00:00", 5], ("unicast",)),
    ("runtimeConfig.mac", ["x", "ff:ff:ff:ff:ff:ff"], ("unicast",)),
    ("args.cni.mac", ["02:00:00:00:00"], ("unicast",)),
    ("tap.owner", [-1, 2**32 - 1, "root"], ("0", str(2**32 - 2))),
    ("tap.group", [-1, 2**32 - 1], ("0", str(2**32 - 2))),
    ("tap.name", ["a/b", "", 5, "a" * 16, "\ud800"], ("interface name",)),
    ("linux", ["br0", ["br0"]], ("object",)),
    ("linux.bridge", ["", None, 5, "a b", "a" * 16, "\ud800"], ("interface name",)),
    ("linux.gateway", ["yes", 1, None], ("true or false",)),
    ("linux.vlan", [0, 4095, "5", True], ("1", "4094")),
    ("ipam", ["host-local", [], {"ranges": []}], ("ipam",)),
    ("ipam.type", ["", "../x", "a/b", ".", "..", 5], ("plugin",)),
    ("dns", [[], "x"], ("object",)),
    ("runtimeConfig", [[], "x"], ("object",)),
    ("args", [[]], ("object",)),
    ("args.cni", [[]], ("object",)),
    ("prevResult", ["x", [], 5], ("object",)),
    ("prevResult.ips", [5, [5], [{"address": "x"}], [{}]], ()),
    ("prevResult.interfaces", [5, [1], [{"name": 5}]], ()),
    ("prevResult.routes", [[{"dst": "x"}]], ()),
]


@pytest.mark.parametrize(
    ("path", "value", "words"), [(path, v, words) for path, values, words in WRONG for v in values]
)
def test_wrong_value(node: Node, idle: Path, path: str, value: Any, words: tuple[str, ...]) -> None:
    fails(run(node, "ADD", idle, full(node, **nested(path, value))), 7, path, *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"linux": ABSENT}, ("linux", "prevResult")),
        ({"linux": {}}, ("linux.bridge",)),
        ({"linux": {"bridge": "br0", "gateway": True}, "ipam": ABSENT}, ("linux.gateway", "ipam")),
        ({"mode": "veth", "tap": {}}, ("tap", "veth")),
        ({"mode": "veth", "linux": ABSENT, "prevResult": {}}, ("mode", "linux")),
        ({"linux": ABSENT, "prevResult": {}}, ("ipam",)),
        ({"linux": ABSENT, "ipam": ABSENT, "prevResult": {}, "mtu": 1400}, ("mtu",)),
        ({"prevResult": {}}, ("prevResult", "first")),
        ({"tap": {"name": "eth0"}}, ("tap.name", "eth0")),
        ({"tap": {"name": "lo"}}, ("tap.name", "lo")),
        ({"linux": {"bridge": "lo"}}, ("linux.bridge", "lo")),
        ({"mtu": 1000}, ("mtu", "IPv6")),
    ],
)
def test_wrong_combination(
    node: Node, idle: Path, change: dict[str, Any], words: tuple[str, ...]
) -> None:
    fails(run(node, "ADD", idle, config(node, **change)), 7, *words)
