"""ADDs of a macvtap that are refused, and the ifindex it gets where others have taken numbers."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import Answer, Node
from cni.kernel import macvtap
from tests.netns.macvtaplib import FORMS, numbers, refused, show
from tests.netns.wirelib import MTU, Attachment, Topology, chained, mastered

OTHER_MAC = "02:00:00:00:00:99"


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Topology:
    return FORMS[request.param]


# What is refused.


def test_a_master_that_is_not_there(node: Node) -> None:
    with mastered(node, master="nowhere") as attached:
        assert refused(attached, "master", "nowhere") == 7


def test_an_mtu_above_the_masters(node: Node) -> None:
    with mastered(node, mtu=MTU + 1) as attached:
        assert refused(attached, "mtu", str(MTU + 1), attached.conf["master"]) == 7


def test_a_master_that_is_a_port(node: Node) -> None:
    with mastered(node) as attached:
        node.run(["ip", "link", "set", attached.conf["master"], "master", "br0"])
        assert refused(attached, "master", "port of a bridge") == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [({"macvtap": {"mode": "passthru"}}, "mode passthru"), ({}, f"mac: {OTHER_MAC}")],
    ids=["passthru", "MAC"],
)
def test_what_does_not_go_beside_another(node: Node, change: dict[str, Any], words: str) -> None:
    with mastered(node, mac=OTHER_MAC) as first:
        first.add()
        second = node.pod()
        answer = node.call("ADD", {**first.conf, **change}, second.name, second)
        assert (answer.code, words in answer.out["msg"]) == (7, True)
        node.lab.drop(second)


def test_a_chain_on_a_macvlan(node: Node) -> None:
    with chained(node, mode="macvtap") as attached:
        for command in (
            "link set eth0 name low",
            "link add link low name eth0 type macvlan mode bridge",
        ):
            node.run(["ip", *command.split()], attached.pod)
        assert refused(attached, "prevResult", "use mode tc") == 7


def test_the_name_is_taken(node: Node) -> None:
    with mastered(node) as attached:
        node.run("ip link add eth0 type ifb".split(), attached.pod)
        assert refused(attached, "eth0 exists already") == 101
        attached.delete()
        assert show(node, "eth0", attached.pod)["linkinfo"]["info_kind"] == "ifb"


# Which ifindex, and so which /dev/tapN, a macvtap gets.


def ifindex(attached: Attachment) -> int:
    """ADD, and the ifindex of the macvtap that it made."""
    attached.add()
    index: int = show(attached.node, attached.macvtap, attached.pod)["ifindex"]
    return index


def test_a_number_that_a_link_of_the_pod_has(node: Node, form: Topology) -> None:
    with form(node) as attached:
        first, second, *_ = numbers(attached)
        node.run(f"ip link add x index {first} type ifb".split(), attached.pod)
        assert ifindex(attached) == second


def test_a_number_that_a_macvtap_of_another_namespace_has(node: Node, form: Topology) -> None:
    with form(node) as attached, stranger(node, attached) as (index, status):
        assert ifindex(attached) == index + 1
        assert os.lstat(macvtap.node_path(index)) == status
        attached.delete()
        assert os.lstat(macvtap.node_path(index)) == status
        assert not Path(macvtap.node_path(index + 1)).exists()


@contextmanager
def stranger(node: Node, attached: Attachment) -> Iterator[tuple[int, os.stat_result]]:
    """Somebody else's macvtap in another namespace, with the first number that ours would get."""
    where, index = node.pod(), numbers(attached)[0]
    try:
        for command in (
            "link add low type veth peer name far",
            f"link add link low name tap index {index} type macvtap",
        ):
            node.run(["ip", *command.split()], where)
        yield index, os.lstat(macvtap.node_path(index))
    finally:
        node.run("ip link del low".split(), where)
        node.lab.drop(where)


def test_all_numbers_taken(node: Node) -> None:
    with mastered(node) as attached:
        for index in numbers(attached):
            node.run(f"ip link add x{index} index {index} type ifb".split(), attached.pod)
        assert refused(attached, "all taken") == 100


def test_a_node_of_a_macvtap_that_is_gone_is_replaced(node: Node, form: Topology) -> None:
    with form(node) as attached:
        path = macvtap.node_path(numbers(attached)[0])
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(macvtap_major(), 0))
        assert ifindex(attached) == numbers(attached)[0]
        assert os.lstat(path).st_mode & 0o777 == 0o600


def macvtap_major() -> int:
    with Path("/proc/devices").open() as f:
        return next(int(line.split()[0]) for line in f if line.rstrip().endswith(" macvtap"))


def test_one_key_on_two_nodes_at_once(node: Node) -> None:
    """Both try the same numbers, but the kernel has one /dev/tapN for all namespaces."""
    with Node() as other:
        other.start()
        ends = {}
        for each in (node, other):
            pod = each.pod("twin")
            each.run("ip link add nic-twin type veth peer name far-twin".split())
            each.run("ip link set nic-twin up".split())
            ends[each] = pod
        conf = {"cniVersion": "1.1.0", "name": "twins", "type": "vmlink", "mode": "macvtap"}
        conf["master"] = "nic-twin"
        try:
            for _ in range(5):
                with ThreadPoolExecutor(2) as pool:
                    told = list(pool.map(lambda n: n.call("ADD", conf, "twin", ends[n]), ends))
                assert [answer.code for answer in told] == [0, 0]
                found = {show(n, "eth0", pod)["ifindex"] for n, pod in ends.items()}
                assert len(found) == 2
                for n, pod in ends.items():
                    n.call("DEL", conf, "twin", pod).expect()
                assert not [i for i in found if Path(macvtap.node_path(i)).exists()]
        finally:
            for n, pod in ends.items():
                n.run("ip link del nic-twin".split())
                n.lab.drop(pod)


def test_many_at_once_on_one_nic(node: Node) -> None:
    with mastered(node, v6=True) as attached:
        pods = [node.pod() for _ in range(24)]

        def call(verb: str) -> list[Answer]:
            with ThreadPoolExecutor(len(pods)) as pool:
                return list(pool.map(lambda p: node.call(verb, attached.conf, p.name, p), pods))

        results = [answer.expect() for answer in call("ADD")]
        assert len({ip["address"] for r in results for ip in r["ips"]}) == 2 * len(pods)
        devices = [
            json.loads(node.run(node.ctl("device", pod.name)).stdout)[0]["path"] for pod in pods
        ]
        assert len({os.lstat(path).st_rdev for path in devices}) == len(pods)
        for answer in call("DEL"):
            answer.expect()
        assert not [path for path in devices if Path(path).exists()]
        for pod in pods:
            node.lab.drop(pod)
