"""GC, STATUS, vmlink in a chain of plugins, and many calls at once: black box."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import Answer, Node
from tests.contract.cnikit import (
    ABSENT,
    KEY,
    SUBNETS,
    attached,
    chained,
    config,
    fails,
    foreign,
    left,
    links,
    records,
    run,
    shown,
    silent,
    valid,
)


def gc(node: Node, **change: Any) -> Answer:
    return node.call("GC", config(node, **change))


@pytest.fixture
def three(node: Node) -> Iterator[dict[str, Path]]:
    """Containers a and b on the network `net`, c on the network `other`, and their pods."""
    pods = {name: node.pod(name) for name in "abc"}
    for name, path in pods.items():
        node.call("ADD", of(node, name), name, path).expect()
    yield pods
    for name, path in pods.items():
        silent(node.call("DEL", of(node, name), name, path))
        node.lab.drop(path)


def of(node: Node, name: str) -> dict[str, Any]:
    return config(node, name="other" if name == "c" else "net")


def alive(pods: dict[str, Path]) -> str:
    return "".join(name for name, path in pods.items() if "eth0" in links(path))


LIST = "cni.dev/valid-attachments"
OLD = "cni.dev/attachments"


def pairs(*names: str) -> list[dict[str, str]]:
    return [{"containerID": n, "ifname": "eth0"} for n in names]


@pytest.mark.parametrize(
    ("change", "stay"),
    [
        ({LIST: pairs("a", "b")}, "abc"),
        ({LIST: pairs("a")}, "ac"),
        ({LIST: [{"containerID": "a", "ifname": "eth1"}, *pairs("b", "x")]}, "bc"),
        ({LIST: pairs("c")}, "c"),
        ({LIST: []}, "c"),
        ({LIST: None}, "c"),
        ({OLD: pairs("b")}, "bc"),
        ({OLD: None}, "c"),
        ({LIST: pairs("a", "b"), OLD: None}, "abc"),
        ({LIST: pairs("a"), "name": "third"}, "abc"),
    ],
)
def test_gc(node: Node, three: dict[str, Path], change: dict[str, Any], stay: str) -> None:
    silent(gc(node, **change))
    assert alive(three) == stay
    assert held(node) == dict.fromkeys(stay, len(SUBNETS))


def held(node: Node) -> dict[str, int]:
    """The number of addresses that each container holds, from host-local's files."""
    owners = [p.read_text().split()[0] for p in node.ipam_dir.glob("*/[1f]*")]
    return {name: owners.count(name) for name in owners}


@pytest.mark.parametrize(
    "change",
    [{}, {LIST: "a"}, {LIST: {}}, {LIST: ["a"]}, {LIST: [{"containerID": "a"}]}, {LIST: [None]}],
)
def test_gc_with_a_bad_list(node: Node, three: dict[str, Path], change: dict[str, Any]) -> None:
    fails(gc(node, **change), 7, LIST)
    assert alive(three) == "abc"


def test_gc_releases_reservations_without_an_attachment(node: Node, three: dict[str, Path]) -> None:
    stray = node.ipam_dir / "net" / "10.9.0.200"
    stray.write_text("gone\r\neth0")
    silent(gc(node, **{LIST: pairs("a", "b")}))
    assert not stray.exists()
    assert alive(three) == "abc"


def test_gc_after_the_namespaces_are_gone(node: Node) -> None:
    for name in ("a", "b"):
        pod = node.pod()
        node.call("ADD", config(node), name, pod).expect()
        node.lab.drop(pod)
    silent(gc(node, **{LIST: []}))
    assert not held(node)
    assert not records(node)


def test_gc_of_a_chain(node: Node, pod: Path) -> None:
    """Libcni sends no prevResult with GC or STATUS."""
    foreign(node, pod)
    conf = chained(node, pod)
    run(node, "ADD", pod, conf).expect()
    bare = {k: v for k, v in conf.items() if k != "prevResult"}
    silent(node.call("STATUS", bare))
    silent(node.call("GC", {**bare, **valid(("c1", "eth0"))}))
    assert KEY.tap_link in links(pod)
    silent(node.call("GC", {**bare, **valid()}))
    assert links(pod) == left("chained")


# STATUS


def test_status(node: Node) -> None:
    for mode in ("tc", "veth"):
        silent(node.call("STATUS", config(node, mode=mode)))


@pytest.mark.parametrize(
    ("ipam", "code", "words"),
    [
        ({"type": "host-local"}, 7, ["ipam.ranges"]),
        ({"type": "host-local", "subnet": "10.0.0.1/24"}, 7, ["ipam.subnet", "10.0.0.0/24"]),
        ({"type": "host-local", "subnet": "10.0.0.0/31"}, 7, ["too small"]),
        ({"type": "host-local", "subnet": "10.0.0.0/24", "dataDir": "/proc/x"}, 50, ["/proc/x"]),
        ({"type": "nothing-here"}, 7, ["nothing-here", "CNI_PATH"]),
        ({"type": "static"}, 50, ["static", "1.1.0"]),
    ],
)
def test_status_of_ipam(node: Node, ipam: dict[str, Any], code: int, words: list[str]) -> None:
    fails(node.call("STATUS", config(node, ipam=ipam)), code, *words)


def test_exhausted_network_fails_the_add_and_not_the_node(node: Node, pod: Path) -> None:
    """A STATUS that fails makes the whole node NotReady: too much for one missing address."""
    conf = config(node, ipam=node.ipam("10.10.0.0/30"))
    with attached(node, pod, conf):
        silent(node.call("STATUS", conf))
        second = node.pod()
        before = node.contents()
        fails(node.call("ADD", conf, "c2", second), 103, "10.10.0.2", "network net")
        assert links(second) == {"lo"}
        assert node.contents() == before
        node.lab.drop(second)


# The chain


def test_chain_in_the_plain_style(node: Node, pod: Path) -> None:
    foreign(node, pod)
    conf = chained(node, pod)
    prev = conf["prevResult"]
    with attached(node, pod, conf) as result:
        tap = result["interfaces"].pop()
        assert (tap["name"], "sandbox" in tap) == (KEY.tap_link, False)
        assert result == {**prev, "cniVersion": "1.1.0"}
        silent(run(node, "CHECK", pod, {**conf, "prevResult": result}))


@pytest.mark.parametrize("name", ["", "tap0"])
@pytest.mark.parametrize("owner", ["", "1234"])
def test_chain_in_the_style_of_tc_redirect_tap(
    node: Node, pod: Path, name: str, owner: str
) -> None:
    foreign(node, pod)
    conf = chained(node, pod, resultStyle="tc-redirect-tap")
    prev = conf["prevResult"]
    args = ";".join(
        f"TC_REDIRECT_TAP_{k}={v}" for k, v in (("NAME", name), ("UID", owner), ("GID", owner)) if v
    )
    with attached(node, pod, conf, CNI_ARGS=args) as result:
        *before, tap, pseudo = result["interfaces"]
        link = shown(node, pod, name or KEY.tap_link)
        mac = shown(node, pod, "eth0")["address"]
        assert before == prev["interfaces"]
        assert {k: tap[k] for k in ("name", "sandbox", "mac")} == {
            "name": name or KEY.tap_link,
            "sandbox": str(pod),
            "mac": link["address"],
        }
        assert pseudo == {"name": name or KEY.tap_link, "sandbox": "c1", "mac": mac}
        assert result["ips"] == [*prev["ips"], {**prev["ips"][0], "interface": 3}]
        assert link["address"] != mac
        assert (
            "multi_queue" not in link["linkinfo"]["info_data"]
            or not link["linkinfo"]["info_data"]["multi_queue"]
        )
        assert link["linkinfo"]["info_data"]["user"] == (int(owner) if owner else "root")
        silent(run(node, "CHECK", pod, {**conf, "prevResult": result}, CNI_ARGS=args))
    assert links(pod) == left("chained")


def test_chain_on_nothing(node: Node, pod: Path) -> None:
    foreign(node, pod, "net1")
    conf = config(node, linux=ABSENT, ipam=ABSENT, prevResult={"interfaces": []})
    fails(run(node, "ADD", pod, conf), 7, "prevResult", "eth0")


# Many at once


def test_twenty_pods_at_once(node: Node) -> None:
    pods = {f"p{n}": node.pod() for n in range(20)}
    conf = config(node)

    def call(verb: str) -> list[Answer]:
        with ThreadPoolExecutor(len(pods)) as pool:
            sent = [pool.submit(node.call, verb, conf, name, pods[name]) for name in pods]
            return [each.result() for each in sent]

    results = [answer.expect() for answer in call("ADD")]
    addresses = {ip["address"] for result in results for ip in result["ips"]}
    assert len(addresses) == 2 * len(pods)
    assert len({result["interfaces"][0]["mac"] for result in results}) == len(pods)
    for answer in call("DEL"):
        silent(answer)
    assert all(links(path) == {"lo"} for path in pods.values())
    assert not held(node)
    for path in pods.values():
        node.lab.drop(path)


def test_one_attachment_many_times_at_once(node: Node, pod: Path) -> None:
    conf = config(node)
    with ThreadPoolExecutor(12) as pool:
        adds = [pool.submit(node.call, "ADD", conf, "c1", pod) for _ in range(12)]
        codes = sorted(each.result().code for each in adds)
        assert codes == [0] + [101] * 11
        for each in [pool.submit(node.call, "DEL", conf, "c1", pod) for _ in range(12)]:
            silent(each.result())
    assert links(pod) == {"lo"}
