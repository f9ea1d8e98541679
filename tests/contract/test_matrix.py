"""Verb by version by what can be wrong with a call: the executed plugin through a real vmlinkd."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import CLIENT, Node
from tests.contract.cnikit import (
    ABSENT,
    NEEDS,
    SINCE,
    SUBNETS,
    VERSIONS,
    attached,
    config,
    fails,
    has,
    links,
    run,
    shown,
    silent,
    valid,
)

VERBS = list(NEEDS)
ON_POD = [verb for verb in VERBS if "CNI_IFNAME" in NEEDS[verb]]
MISSING = [
    (verb, names)
    for verb in VERBS
    for count in range(1, len(NEEDS[verb]) + 1)
    for names in combinations(NEEDS[verb], count)
]
MIB = 1 << 20


@pytest.fixture(scope="module")
def idle(node: Node) -> Iterator[Path]:
    """A pod that no call of this module may change."""
    path = node.pod()
    yield path
    assert links(path) == {"lo"}
    node.lab.drop(path)


def full(node: Node, **change: Any) -> dict[str, Any]:
    """Good for every verb: what is wrong with a call is what the test changed."""
    return config(node, **{**valid(), **change})


# The environment


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("verb", "names"), MISSING)
def test_missing_variables(
    node: Node, idle: Path, verb: str, names: tuple[str, ...], version: str
) -> None:
    conf = full(node, cniVersion=version)
    absent = run(node, verb, idle, conf, **dict.fromkeys(names))
    message = fails(absent, 4, *names)
    assert not [n for n in NEEDS[verb] if n not in names and n in message]
    empty = {**dict.fromkeys(names, "")}
    if "CNI_CONTAINERID" in names:
        fails(run(node, verb, idle, conf, **empty), 3, "CNI_CONTAINERID")
    else:
        fails(run(node, verb, idle, conf, **empty), 4, *names)


def test_without_a_command(node: Node) -> None:
    done = subprocess.run([CLIENT], env={}, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "vmlink" in done.stderr


@pytest.mark.parametrize("verb", ["", "FOO", "add", "ADD ", "UPDATE"])
def test_unknown_verb(node: Node, idle: Path, verb: str) -> None:
    fails(run(node, verb, idle, full(node)), 4, "CNI_COMMAND")


@pytest.mark.parametrize("stdin", [b"", b"{}", b'{"cniVersion": "0.4.0"}', b"\xff"])
def test_version(node: Node, stdin: bytes) -> None:
    answer = node.execute(CLIENT, {"CNI_COMMAND": "VERSION"}, stdin)
    assert answer.expect()["supportedVersions"] == list(VERSIONS)
    assert answer.out["cniVersion"] in VERSIONS


@pytest.mark.parametrize("verb", ON_POD)
@pytest.mark.parametrize("bad", ["-a", ".a", "a/b", "../a", "a b", "a\n", "ä", "a" * 201, "a:b"])
def test_bad_container_id(node: Node, idle: Path, verb: str, bad: str) -> None:
    fails(run(node, verb, idle, full(node), CNI_CONTAINERID=bad), 4, "CNI_CONTAINERID")


@pytest.mark.parametrize("verb", ON_POD)
@pytest.mark.parametrize(
    "bad",
    [
        ".",
        "..",
        "a/b",
        "a:b",
        "a b",
        "a\tb",
        "a\n",
        "a\u00a0b",
        "a" * 16,
        "ä" * 8,
        "a\udcff",
        "v%d",
    ],
)
def test_bad_ifname(node: Node, idle: Path, verb: str, bad: str) -> None:
    fails(run(node, verb, idle, full(node), CNI_IFNAME=bad), 4, "CNI_IFNAME")


@pytest.mark.parametrize("name", ["a", "a" * 15, "ä" * 7, "-x", "net1.100", "..."])
def test_good_ifname(node: Node, pod: Path, name: str) -> None:
    with attached(node, pod, config(node), CNI_IFNAME=name) as result:
        assert result["interfaces"][0]["name"] == name
        assert name in links(pod)
    assert links(pod) == {"lo"}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("bad", [ABSENT, "", "-a", "a/b", "a b", "ä", "a" * 201, 5, None, ["a"]])
def test_bad_network_name(node: Node, idle: Path, verb: str, bad: Any) -> None:
    fails(run(node, verb, idle, full(node, name=bad)), 7, "name")


@pytest.fixture
def no_namespace(node: Node, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    paths = {"missing": "/nonexistent", "other": "/proc/self/ns/mnt", "fifo": str(fifo)}
    return {**paths, "file": __file__, "directory": "/"}[request.param]


@pytest.mark.parametrize(
    "no_namespace", ["missing", "other", "fifo", "file", "directory"], indirect=True
)
@pytest.mark.parametrize("verb", ON_POD)
def test_no_namespace(node: Node, no_namespace: str, verb: str) -> None:
    prev = {"prevResult": {"interfaces": [{"name": "eth0", "sandbox": "x"}]}}
    answer = run(node, verb, no_namespace, config(node, **(prev if verb == "CHECK" else {})))
    if verb == "DEL":
        silent(answer)
    else:
        fails(answer, 4, "CNI_NETNS", no_namespace)


def test_namespace_of_the_node(node: Node) -> None:
    conf = config(node)
    for value in (None, "", "0", "true"):
        answer = run(node, "ADD", node.path, conf, CNI_NETNS_OVERRIDE=value)
        fails(answer, 4, "CNI_NETNS", "CNI_NETNS_OVERRIDE")
    with attached(node, node.path, conf, CNI_NETNS_OVERRIDE="1"):
        assert "eth0" in links(node.path)
    assert "eth0" not in links(node.path)


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ("FOO=1", "FOO"),
        ("MAC=02:00:00:00:00:01;FOO=1;BAR=2", "FOO, BAR"),
        ("FOO=1;IgnoreUnknown=0", "FOO"),
        ("FOO", "'FOO'"),
        ("=1", "'=1'"),
        ("TC_REDIRECT_TAP_UID=root", "TC_REDIRECT_TAP_UID"),
    ],
)
def test_bad_cni_args(node: Node, idle: Path, args: str, word: str) -> None:
    fails(run(node, "ADD", idle, config(node), CNI_ARGS=args), 4, "CNI_ARGS", word)


@pytest.mark.parametrize("yes", ["1", "true", "True", "TRUE", "t"])
def test_unknown_cni_args_ignored(node: Node, pod: Path, yes: str) -> None:
    args = f"IgnoreUnknown={yes};FOO=1;K8S_POD_NAME=a;MAC=02:00:00:00:00:01"
    with attached(node, pod, config(node), CNI_ARGS=args):
        assert shown(node, pod, "eth0")["address"] == "02:00:00:00:00:01"


# The configuration


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
    fails(run(node, verb, idle, stdin), 6)


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
    fails(run(node, verb, pod, stdin + b" "), 6, "stdin", str(MIB))


def test_message_is_bounded(node: Node, idle: Path) -> None:
    """Quoted, this value has five times its size and would not fit into an answer."""
    for _ in range(2 * 16 + 1):  # more than there are workers
        raw = json.dumps(config(node, mode="@")).replace("@", "\x7f" * (MIB - 1000)).encode()
        assert len(fails(run(node, "ADD", idle, raw), 7, "mode", "tc, veth")) < 1 << 16


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("version", [ABSENT, "", "0.1.0", "0.2.0", "0.3.0", "1.2.0", "2.0.0", "x"])
def test_version_that_is_not_served(node: Node, idle: Path, verb: str, version: Any) -> None:
    answer = run(node, verb, idle, full(node, cniVersion=version))
    fails(answer, 1, "cniVersion", "0.1.0" if version is ABSENT else version, *VERSIONS)


@pytest.mark.parametrize(
    ("verb", "version"), [(v, w) for v in SINCE for w in VERSIONS if not has(v, w)]
)
def test_verb_that_the_version_has_not(node: Node, idle: Path, verb: str, version: str) -> None:
    answer = run(node, verb, idle, full(node, cniVersion=version))
    fails(answer, 1, verb, SINCE[verb], version)
    assert answer.out["cniVersion"] == version


def nested(path: str, value: Any) -> dict[str, Any]:
    """`linux.vlan` and 5 -> {"linux": {"bridge": "br0", "vlan": 5}}"""
    outer, _, inner = path.partition(".")
    if not inner:
        return {outer: value}
    base = {"linux": {"bridge": "br0"}}.get(outer, {})
    return {outer: {**base, **nested(inner, value)}}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("path", ["bogus", "Mode", "linux.bogus", "tap.bogus", "bridge"])
def test_unknown_key(node: Node, idle: Path, verb: str, path: str) -> None:
    answer = run(node, verb, idle, full(node, **nested(path, {"some": "value"})))
    fails(answer, 2, path, "{'some': 'value'}")


WRONG = [
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


# What goes well


RESULT = {"cniVersion", "interfaces", "ips", "routes", "dns"}
INTERFACE = ({"name", "mac", "sandbox"}, {"mtu", "socketPath", "pciID"})
ROUTE = ({"dst", "gw"}, {"mtu", "advmss", "priority", "table", "scope"})


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", ["tc", "veth"])
@pytest.mark.parametrize("style", ["plain", "tc-redirect-tap"])
def test_result(node: Node, pod: Path, version: str, mode: str, style: str) -> None:
    if (mode, style) == ("veth", "tc-redirect-tap"):
        conf = config(node, cniVersion=version, mode=mode, resultStyle=style)
        fails(run(node, "ADD", pod, conf), 7, "resultStyle")
        return
    ipam = node.ipam(*SUBNETS)
    ipam["routes"] = [{"dst": "10.7.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 7}]
    conf = config(node, cniVersion=version, mode=mode, resultStyle=style, ipam=ipam)
    with attached(node, pod, conf) as result:
        newest = version == "1.1.0"
        assert set(result) == RESULT
        assert result["cniVersion"] == version
        for each, (always, later) in [(i, INTERFACE) for i in result["interfaces"]] + [
            (r, ROUTE) for r in result["routes"]
        ]:
            assert set(each) <= always | (later if newest else set())
        assert ("mtu" in result["interfaces"][0]) == newest
        assert ("priority" in result["routes"][0]) == newest
        families = [ip.get("version") for ip in result["ips"]]
        assert set(families) == ({"4", "6"} if version < "1" else {None})
        first = result["interfaces"][0]
        assert first["name"] == "eth0"
        assert first["sandbox"] == str(pod)
        assert first["mac"] == shown(node, pod, "eth0")["address"]
        assert [ip["address"][:4] for ip in result["ips"] if ip["interface"] == 0] == [
            "10.9",
            "fd00",
        ]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", ["tc", "veth"])
def test_every_verb(node: Node, pod: Path, version: str, mode: str) -> None:
    conf = config(node, cniVersion=version, mode=mode)
    result = run(node, "ADD", pod, conf).expect()
    again = fails(run(node, "ADD", pod, conf), 101, "c1/eth0")
    assert "DEL" in again
    if has("CHECK", version):
        silent(run(node, "CHECK", pod, {**conf, "prevResult": result}))
    if has("GC", version):
        silent(run(node, "STATUS", pod, conf))
        silent(run(node, "GC", pod, {**conf, **valid(("c1", "eth0"))}))
        assert "eth0" in links(pod)
    silent(run(node, "DEL", pod, {**conf, "prevResult": result}))
    silent(run(node, "DEL", pod, conf))
    assert links(pod) == {"lo"}
