"""Networks of kube-ovn with a pool of ports made ahead, and pods whose ADDs have to wait."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench.testbed import pool
from bench.testbed.kube_apiserver import FakeApiServer
from bench.testbed.node import Node
from cni.kubeovn.pod_annotations import MODE
from tests.ovs.kubeovnkit import MAC, appear, clustered, written
from tests.ovs.ovskit import BRIDGE
from tests.ovs.test_attachments import row
from tests.ovs.test_kubeovn import attached, config, external_ids
from tests.waits import until

SIZE, WORKERS = 2, 2
TAP = config("tap")


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Node, FakeApiServer]]:
    pools = {"net": {"tap": {"size": SIZE, "refill_below": 1}}}
    with clustered(pools=pools, workers=WORKERS, deadline=20) as made:
        yield made


@pytest.fixture
def api(cluster: tuple[Node, FakeApiServer]) -> FakeApiServer:
    return cluster[1]


@pytest.fixture
def node(cluster: tuple[Node, FakeApiServer]) -> Node:
    """A node with a full pool."""
    node = cluster[0]
    node.call("STATUS", TAP).expect()
    pool.wait_until_full(node, "net", SIZE)
    return node


def kits(node: Node) -> set[str]:
    assert node.switch
    return {p for p in node.switch.vsctl("list-ports", BRIDGE).split() if p.startswith("vlt")}


def limits(node: Node, port: str) -> list[Any]:
    found = row(node, "Port", port, "qos", "tag", "protected")
    return found + row(node, "Interface", port, "ingress_policing_rate")


PODS: list[tuple[dict[str, str | None], str, str | None]] = [
    ({}, MAC, "10.16.0.5"),
    ({"ingress_rate": "8", "mac_address": "02:00:00:00:00:07"}, "02:00:00:00:00:07", "10.16.0.5"),
    ({"ip_address": "10.16.0.9", "gateway": "10.16.0.1"}, MAC, "10.16.0.9"),
    ({"ip_address": None, "cidr": None, "gateway": None}, MAC, None),
]


def test_kits_get_what_kube_ovn_chose_and_keep_nothing_of_it(
    node: Node, api: FakeApiServer, pod: Path
) -> None:
    """More pods than kits, one after the other, so that kits are used again."""
    before = kits(node)
    as_new = {kit: limits(node, kit) for kit in before}
    had = []
    for number, (change, mac, address) in enumerate(PODS):
        name = f"pod{number}"
        args = appear(api, name, annotations=written("ovn", **change))
        with attached(node, pod, TAP, args) as result:
            tap = result["interfaces"][1]["name"]
            assert tap in before
            had.append(tap)
            assert result["interfaces"][0]["mac"] == mac
            assert [ip["address"] for ip in result["ips"]] == [f"{address}/16"] * bool(address)
            ids = external_ids(node, tap)
            told = {"iface-id": f"{name}.shop", "pod_name": name, "attached-mac": mac}
            assert {key: ids[key] for key in told} == told
            assert ids.get("ip") == address
            assert (limits(node, tap)[0] != as_new[tap][0]) == ("ingress_rate" in change)
        until(lambda: kits(node) == before)
        assert {kit: limits(node, kit) for kit in before} == as_new
        assert [external_ids(node, kit) for kit in before] == [{}] * SIZE
        api.delete("shop", name)
    assert len(set(had)) < len(had)


def test_a_kit_that_does_not_fit_stays(node: Node, api: FakeApiServer, pod: Path) -> None:
    before = kits(node)
    args = appear(api, annotations=written("net1.shop", vlan_id="7", routed=None))
    with attached(node, pod, config("tap", "net1.shop"), args) as result:
        tap = result["interfaces"][1]["name"]
        assert tap not in before
        assert row(node, "Port", tap, "tag") == [7]
        assert kits(node) == before | {tap}
    assert kits(node) == before
    api.delete("shop", "web")


def test_a_limit_that_no_kit_can_have(node: Node, api: FakeApiServer, pod: Path) -> None:
    """Whether a port can be policed is decided when it is made; the userspace datapath cannot."""
    before = kits(node)
    args = appear(api, annotations=written(egress_rate="8"))
    answer = node.call("ADD", TAP, "c1", pod, CNI_ARGS=args)
    assert (answer.code, "bandwidth.egressRate" in answer.out["msg"]) == (105, True), answer.out
    assert kits(node) == before
    api.delete("shop", "web")


@pytest.mark.parametrize(("network", "own"), [("tap", "veth"), ("veth", "tap")])
def test_kits_are_for_pods_of_their_mode(
    node: Node, api: FakeApiServer, pod: Path, network: str, own: str
) -> None:
    """The pod may have chosen its mode itself, by an annotation."""
    before = kits(node)
    args = appear(api, annotations=written() | {MODE: own})
    with attached(node, pod, config(network), args) as result:
        assert (result["interfaces"][1]["name"] in before) == (own == "tap")
        assert kits(node) == before
    assert [external_ids(node, kit) for kit in before] == [{}] * SIZE
    api.delete("shop", "web")


def test_pods_that_wait_keep_no_other_waiting(node: Node, api: FakeApiServer, pod: Path) -> None:
    names = [f"late{n}" for n in range(WORKERS + 1)]
    pods = [node.pod(name) for name in names]
    args = [appear(api, name, annotations={}) for name in names]
    with ThreadPoolExecutor(len(names)) as threads:
        adding = [
            threads.submit(node.call, "ADD", config(), name, where, CNI_ARGS=named)
            for name, where, named in zip(names, pods, args, strict=True)
        ]
        plain = {**config(), "name": "other", "ipam": node.ipam("10.9.0.0/24")}
        del plain["kubeovn"]
        node.call("ADD", plain, "c1", pod).expect()
        node.call("DEL", plain, "c1", pod).expect()
        assert not any(add.done() for add in adding)
        for number, name in enumerate(names):
            api.put("shop", name, annotations=written(ip_address=f"10.16.1.{number}"))
        for add in adding:
            add.result().expect()
    for name, where in zip(names, pods, strict=True):
        node.call("DEL", config(), name, where).expect()
        node.lab.drop(where)
        api.delete("shop", name)
