"""What can be wrong with the environment, by verb and version: the client and a real vmlinkd."""

from __future__ import annotations

import os
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import CLIENT, Node
from tests.contract.cnikit import (
    ABSENT,
    NEEDS,
    VERSIONS,
    attached,
    config,
    fails,
    full,
    links,
    refuses,
    run,
    shown,
    silent,
)

VERBS = list(NEEDS)
ON_POD = [verb for verb in VERBS if "CNI_IFNAME" in NEEDS[verb]]
MISSING = [
    (verb, names)
    for verb in VERBS
    for count in range(1, len(NEEDS[verb]) + 1)
    for names in combinations(NEEDS[verb], count)
]


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
    answer = run(node, verb, idle, full(node), CNI_CONTAINERID=bad)
    refuses(verb, answer, 4, "CNI_CONTAINERID")


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
    refuses(verb, run(node, verb, idle, full(node), CNI_IFNAME=bad), 4, "CNI_IFNAME")


@pytest.mark.parametrize("name", ["a", "a" * 15, "ä" * 7, "-x", "net1.100", "..."])
def test_good_ifname(node: Node, pod: Path, name: str) -> None:
    with attached(node, pod, config(node), CNI_IFNAME=name) as result:
        assert result["interfaces"][0]["name"] == name
        assert name in links(pod)
    assert links(pod) == {"lo"}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("bad", [ABSENT, "", "-a", "a/b", "a b", "ä", "a" * 201, 5, None, ["a"]])
def test_bad_network_name(node: Node, idle: Path, verb: str, bad: Any) -> None:
    refuses(verb, run(node, verb, idle, full(node, name=bad)), 7, "name")


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
