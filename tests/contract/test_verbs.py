"""ADD, DEL and CHECK over the life of one pod: black box."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import Node
from cni.kernel import redirect
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from tests.contract.cnikit import (
    ABSENT,
    KEY,
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
)

TAP = KEY.tap_link


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
    """The configuration of an ADD; for `chained`, another plugin's interface is in the pod."""
    if kind == "chained":
        foreign(node, pod)
        return chained(node, pod)
    return config(node, mode=kind)


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
    """A function that makes a new namespace at the same path each time."""
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
    """Attach c1, then delete its namespace and put another at its path."""
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
    """The configuration of a CHECK that succeeds until the test breaks something."""
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


def test_check_without_a_sandbox(node: Node, pod: Path, checked: dict[str, Any]) -> None:
    other("sandbox", "")(checked["prevResult"])
    answer = run(node, "CHECK", pod, checked)
    if "linux" in checked:
        fails(answer, 104, "eth0", "sandbox")
    else:  # chained, it is CNI_IFNAME that counts
        silent(answer)


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
HOST_LINK = KEY.host_link
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


def test_a_record_of_another_version_does_not_stop_del(node: Node, pod: Path) -> None:
    conf = config(node)
    run(node, "ADD", pod, conf).expect()
    (path,) = (node.run_dir / "state").glob("*.json")
    first, second = path.read_text().split("\n")
    record = json.loads(first)
    record["steps"]["bind"].append({"step": "OfAnotherVersion"})
    path.write_text(f"{json.dumps(record)}\n{second}")
    silent(run(node, "DEL", pod, conf))
    assert links(pod) == {"lo"}


@pytest.mark.parametrize("mode", ["tc", "veth"])
def test_del_that_knows_nothing_finds_a_living_namespace(node: Node, pod: Path, mode: str) -> None:
    conf = config(node, mode=mode)
    run(node, "ADD", pod, conf).expect()
    for path in records(node):
        path.unlink()
    silent(run(node, "DEL", pod, conf, CNI_NETNS=""))
    assert links(pod) == {"lo"}
