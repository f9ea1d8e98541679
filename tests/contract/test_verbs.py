"""What ADD, DEL, CHECK, GC and STATUS do to a node, pods and chains: black box."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cnikit import (
    ABSENT,
    SUBNETS,
    attached,
    chained,
    config,
    fails,
    foreign,
    links,
    run,
    shown,
    silent,
    valid,
)

from bench.node import Node
from cni import redirect
from cni.netlink import Netlink
from cni.netns import Namespace
from cni.types import AttachmentKey

TAP = AttachmentKey("c1", "eth0").tap_link


def test_add_of_an_interface_of_somebody_else(node: Node, pod: Path) -> None:
    node.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far"], pod)
    fails(run(node, "ADD", pod, config(node)), 101, "eth0")
    fails(run(node, "ADD", pod, config(node), CNI_CONTAINERID="c2"), 101, "eth0")
    silent(run(node, "DEL", pod, config(node)))
    assert links(pod) == {"lo", "eth0", "far"}


MACS = {n: f"02:00:00:00:00:0{n}" for n in (1, 2, 3, 4)}


@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_precedence_of_macs(node: Node, pod: Path, first: int) -> None:
    places: dict[int, dict[str, Any]] = {
        1: {"runtimeConfig": {"mac": MACS[1]}},
        2: {"args": {"cni": {"mac": MACS[2].upper()}}},
        4: {"mac": MACS[4]},
    }
    conf = config(node)
    for number in range(first, 5):
        conf |= places.get(number, {})
    env = {"CNI_ARGS": f"MAC={MACS[3]}"} if first <= 3 else {}
    with attached(node, pod, conf, **env) as result:
        assert result["interfaces"][0]["mac"] == MACS[first]
        assert shown(node, pod, "eth0")["address"] == MACS[first]


# DEL


@pytest.fixture(params=["tc", "veth", "chained"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def conf(node: Node, pod: Path, kind: str) -> dict[str, Any]:
    """One of three ways to attach `pod`; the chained one with the interface to chain on."""
    if kind == "chained":
        foreign(node, pod)
        return chained(node, pod)
    return config(node, mode=kind)


def left(kind: str) -> set[str]:
    return {"lo", "eth0", "far-eth0"} if kind == "chained" else {"lo"}


def records(node: Node) -> list[Path]:
    return list((node.run_dir / "state").glob("*.json"))


@pytest.mark.parametrize(
    ("state", "lacks"),
    [
        ("kept", ""),
        ("kept", "netns"),
        ("kept", "prevResult"),
        ("lost", ""),
        ("lost", "prevResult"),
        ("broken", ""),
        ("broken", "prevResult"),
    ],
)
def test_del(
    node: Node, pod: Path, kind: str, conf: dict[str, Any], state: str, lacks: str
) -> None:
    run(node, "ADD", pod, conf).expect()
    for path in records(node):
        if state == "lost":
            path.unlink()
        elif state == "broken":
            path.write_text('{"container_id": "c1"')
    conf.pop(lacks, None)
    netns = {"CNI_NETNS": None} if lacks == "netns" else {}
    silent(run(node, "DEL", pod, conf, **netns))
    assert links(pod) == left(kind)
    assert not records(node)
    silent(run(node, "DEL", pod, conf, **netns))


@pytest.mark.parametrize("given", [True, False], ids=["CNI_NETNS", "no CNI_NETNS"])
@pytest.mark.parametrize("state", ["kept", "lost"])
def test_del_after_the_namespace_is_gone(node: Node, kind: str, given: bool, state: str) -> None:
    pod = node.pod()
    if kind == "chained":
        foreign(node, pod)
    conf = chained(node, pod) if kind == "chained" else config(node, mode=kind)
    run(node, "ADD", pod, conf).expect()
    node.lab.drop(pod)
    if state == "lost":
        shutil.rmtree(node.run_dir / "state")
        (node.run_dir / "state").mkdir()
    for _ in range(2):
        silent(run(node, "DEL", pod, conf, **({} if given else {"CNI_NETNS": ""})))


@pytest.fixture
def reused(node: Node) -> Iterator[Callable[[], Path]]:
    """Each call makes a new namespace at the same path."""
    path = node.lab.dir / "ns-reused"

    def renew() -> Path:
        if path.exists():
            node.lab.drop(path)
        return node.pod("reused")

    yield renew
    node.lab.drop(path)


@pytest.mark.parametrize("state", ["kept", "lost"])
@pytest.mark.parametrize("neighbour", ["vmlink", "vmlink chained"])
def test_del_when_another_pod_has_the_path(
    node: Node, reused: Callable[[], Path], kind: str, state: str, neighbour: str
) -> None:
    pod, conf = attach_old(node, reused, kind, state)
    if neighbour == "vmlink chained":
        foreign(node, pod)
    new = chained(node, pod) if neighbour == "vmlink chained" else config(node)
    with attached(node, pod, new, "c2") as result:
        silent(run(node, "DEL", pod, conf))
        silent(node.call("CHECK", {**new, "prevResult": result}, "c2", pod))


@pytest.mark.parametrize("state", ["kept", "lost"])
def test_del_when_another_plugin_has_the_path(
    node: Node, reused: Callable[[], Path], kind: str, state: str
) -> None:
    pod, conf = attach_old(node, reused, kind, state)
    foreign(node, pod)
    silent(run(node, "DEL", pod, conf))
    assert links(pod) == {"lo", "eth0", "far-eth0"}


def attach_old(
    node: Node, reused: Callable[[], Path], kind: str, state: str
) -> tuple[Path, dict[str, Any]]:
    """c1 is attached, its namespace then gone and another at its path."""
    pod = reused()
    if kind == "chained":
        foreign(node, pod)
    conf = chained(node, pod) if kind == "chained" else config(node, mode=kind)
    run(node, "ADD", pod, conf).expect()
    for path in records(node):
        if state == "lost":
            path.unlink()
    return reused(), conf


# CHECK


@pytest.fixture
def checked(node: Node, pod: Path, conf: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The configuration of a CHECK that is good until the test breaks something."""
    with attached(node, pod, conf) as result:
        yield {**conf, "prevResult": result}


def test_check(node: Node, pod: Path, checked: dict[str, Any]) -> None:
    silent(run(node, "CHECK", pod, checked))
    node.run(["ip", "address", "add", "10.77.0.1/24", "dev", "eth0"], pod)
    silent(run(node, "CHECK", pod, checked))


def other(key: str, value: str) -> Callable[[dict[str, Any]], None]:
    def change(prev: dict[str, Any]) -> None:
        for interface in prev["interfaces"]:
            if interface["name"] == "eth0":
                interface[key] = value

    return change


def wrong_address(prev: dict[str, Any]) -> None:
    prev["ips"][0]["address"] = "10.9.0.77/24"


def wrong_route(prev: dict[str, Any]) -> None:
    prev["routes"] = [{"dst": "10.66.0.0/16"}]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other("name", "eth9"), ["eth0"]),
        (other("sandbox", ""), ["eth0", "sandbox"]),
        (other("mac", "02:00:00:00:00:99"), ["MAC", "02:00:00:00:00:99"]),
        (wrong_address, ["10.9.0.77/24"]),
        (wrong_route, ["10.66.0.0/16"]),
    ],
)
def test_check_against_a_foreign_prev_result(
    node: Node,
    pod: Path,
    checked: dict[str, Any],
    change: Callable[[dict[str, Any]], None],
    words: list[str],
) -> None:
    foreign_one = copy.deepcopy(checked)
    change(foreign_one["prevResult"])
    fails(run(node, "CHECK", pod, foreign_one), 104, *words)


@pytest.mark.parametrize("prev", [None, ABSENT])
def test_check_without_prev_result(node: Node, pod: Path, prev: Any) -> None:
    with attached(node, pod, config(node)):
        fails(run(node, "CHECK", pod, config(node, prevResult=prev)), 7, "prevResult")


def test_check_of_nothing(node: Node, pod: Path, conf: dict[str, Any]) -> None:
    with attached(node, pod, conf) as result:
        checked = {**conf, "prevResult": result}
        fails(run(node, "CHECK", pod, checked, CNI_IFNAME="eth1"), 104, "c1/eth1")
    fails(run(node, "CHECK", pod, checked), 104, "c1/eth0")


BREAKS = {
    "address": ("tc veth chained", ["ip", "address", "flush", "dev", "eth0", "scope", "global"]),
    "link down": ("tc veth chained", ["ip", "link", "set", "eth0", "down"]),
    "other MAC": ("tc veth chained", ["ip", "link", "set", "eth0", "address", "02:0:0:0:0:99"]),
    "link gone": ("tc veth chained", ["ip", "link", "delete", "eth0"]),
    "route": ("tc veth", ["ip", "route", "delete", "default"]),
    "route of v6": ("tc veth", ["ip", "-6", "route", "delete", "default"]),
    "tap gone": ("tc chained", ["ip", "link", "delete", TAP]),
    "tap down": ("tc chained", ["ip", "link", "set", TAP, "down"]),
    "MTU of the tap": ("tc chained", ["ip", "link", "set", TAP, "mtu", "1300"]),
    "clsact": ("tc chained", ["tc", "qdisc", "delete", "dev", "eth0", "clsact"]),
    "filter": ("tc chained", ["tc", "filter", "delete", "dev", TAP, "ingress"]),
}
HOST_LINK = AttachmentKey("c1", "eth0").host_link
NODE_BREAKS = {
    "port down": ["ip", "link", "set", HOST_LINK, "down"],
    "port out of its bridge": ["ip", "link", "set", HOST_LINK, "nomaster"],
}


@pytest.mark.parametrize(
    ("kind", "what"),
    [(k, what) for what, (kinds, _) in BREAKS.items() for k in kinds.split()],
)
def test_check_finds(node: Node, pod: Path, checked: dict[str, Any], what: str) -> None:
    node.run(BREAKS[what][1], pod)
    fails(run(node, "CHECK", pod, checked), 104)


@pytest.mark.parametrize("kind", ["tc", "veth"], indirect=True)
@pytest.mark.parametrize("what", NODE_BREAKS)
def test_check_finds_on_the_node(node: Node, pod: Path, checked: dict[str, Any], what: str) -> None:
    node.run(NODE_BREAKS[what])
    fails(run(node, "CHECK", pod, checked), 104, HOST_LINK)


@pytest.mark.parametrize("kind", ["tc", "veth"], indirect=True)
def test_check_finds_the_address_released(node: Node, pod: Path, checked: dict[str, Any]) -> None:
    for address in (node.ipam_dir / "net").glob("[1f]*"):
        address.unlink()
    fails(run(node, "CHECK", pod, checked), 104, "c1/eth0")


@pytest.mark.parametrize("engine", redirect.ENGINES)
def test_check_finds_a_redirect_detached(node: Node, pod: Path, engine: str) -> None:
    conf = config(node, redirect=engine)
    with attached(node, pod, conf) as result:
        checked = {**conf, "prevResult": result}
        silent(run(node, "CHECK", pod, checked))
        detach(node, pod, engine)
        fails(run(node, "CHECK", pod, checked), 104, engine)


def detach(node: Node, pod: Path, engine: str) -> None:
    with Namespace.open(str(pod)) as ns, ns.entered(), Netlink() as netlink:
        index = netlink.index(TAP)
        assert index
        redirect.detach(engine, netlink, index)


# GC


def gc(node: Node, **change: Any) -> Any:
    return node.call("GC", config(node, **change))


@pytest.fixture
def three(node: Node) -> Iterator[dict[str, Path]]:
    """Containers a, b of network net, and c of another one, each with its pod."""
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
    assert held(node) == dict.fromkeys(stay, SUBNETS_COUNT)


SUBNETS_COUNT = len(SUBNETS)


def held(node: Node) -> dict[str, int]:
    """How many addresses each container holds, by the files of host-local."""
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
    """libcni sends no prevResult with GC and STATUS."""
    foreign(node, pod)
    conf = chained(node, pod)
    run(node, "ADD", pod, conf).expect()
    bare = {k: v for k, v in conf.items() if k != "prevResult"}
    silent(node.call("STATUS", bare))
    silent(node.call("GC", {**bare, **valid(("c1", "eth0"))}))
    assert TAP in links(pod)
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
    """STATUS would have the node's pods evicted for want of one address."""
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
        assert (tap["name"], tap["sandbox"]) == (TAP, str(pod))
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
        link = shown(node, pod, name or TAP)
        mac = shown(node, pod, "eth0")["address"]
        assert before == prev["interfaces"]
        assert {k: tap[k] for k in ("name", "sandbox", "mac")} == {
            "name": name or TAP,
            "sandbox": str(pod),
            "mac": link["address"],
        }
        assert pseudo == {"name": name or TAP, "sandbox": "c1", "mac": mac}
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

    def call(verb: str) -> list[Any]:
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
