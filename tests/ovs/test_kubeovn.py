"""Networks of kube-ovn through the real client: a pod gets what the controller wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.kube_apiserver import FakeApiServer
from bench.testbed.node import Node
from cni.kubeovn.pod_annotations import MODE
from cni.spec.capabilities import POD_ANNOTATIONS
from cni.spec.types import AttachmentKey
from tests.ovs.kubeovnkit import DUAL, MAC, appear, clustered, pod_args, start, written
from tests.ovs.ovskit import BRIDGE

KEY = AttachmentKey("c1", "eth0")
PORTS = {"tc": KEY.host_link, "veth": KEY.host_link, "tap": KEY.tap_link}
WEB = ("shop", "web")
DEADLINE = 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Node, FakeApiServer]]:
    with clustered(deadline=DEADLINE, runtime_classes={"kata": "tap"}) as made:
        yield made


@pytest.fixture(scope="module")
def node(cluster: tuple[Node, FakeApiServer]) -> Node:
    return cluster[0]


@pytest.fixture
def api(cluster: tuple[Node, FakeApiServer]) -> FakeApiServer:
    return cluster[1]


@pytest.fixture
def web(api: FakeApiServer) -> Iterator[str]:
    """CNI_ARGS of the pod `web`, whose annotations are already written."""
    yield appear(api, annotations=written())
    api.delete(*WEB)


def config(mode: str = "veth", provider: str = "ovn", **change: Any) -> dict[str, Any]:
    base = {"cniVersion": "1.1.0", "name": "net", "type": "vmlink", "mode": mode}
    return {**base, "ovs": {"bridge": BRIDGE}, "kubeovn": {"provider": provider}, **change}


@contextmanager
def attached(
    node: Node,
    pod: Path,
    conf: dict[str, Any],
    args: str,
    container: str = "c1",
    ifname: str = "eth0",
) -> Iterator[dict[str, Any]]:
    try:
        yield node.call("ADD", conf, container, pod, ifname, CNI_ARGS=args).expect()
    finally:
        node.call("DEL", conf, container, pod, ifname, CNI_ARGS=args).expect()


def external_ids(node: Node, port: str) -> dict[str, str]:
    assert node.switch
    out = node.switch.vsctl("--format=json", "--columns=external_ids", "list", "Interface", port)
    found = dict(json.loads(out)["data"][0][0][1])
    return {k: v for k, v in found.items() if not k.startswith("vmlink-")}


@pytest.mark.parametrize("mode", PORTS)
def test_a_pod_gets_what_kube_ovn_chose(node: Node, pod: Path, web: str, mode: str) -> None:
    conf = config(mode)
    with attached(node, pod, conf, web) as result:
        assert result["interfaces"][0]["mac"] == MAC
        address = {"address": "10.16.0.5/16", "gateway": "10.16.0.1", "interface": 0}
        assert result["ips"] == [address]
        assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.16.0.1"}]
        assert external_ids(node, PORTS[mode]) == {
            "attached-mac": MAC,
            "iface-id": "web.shop",
            "vendor": "kube-ovn",
            "pod_name": "web",
            "pod_namespace": "shop",
            "pod_netns": str(pod),
            "ip": "10.16.0.5",
        }
        if mode != "tap":
            assert "default via 10.16.0.1" in node.run(["ip", "route"], pod).stdout
        node.call("CHECK", {**conf, "prevResult": result}, "c1", pod, CNI_ARGS=web).expect()


def test_dual_stack_on_a_secondary_network(node: Node, pod: Path, api: FakeApiServer) -> None:
    routes = json.dumps([{"dst": "10.99.0.0/16", "gw": "10.16.0.9"}, {"dst": "fd00:99::/64"}])
    given = written("net1.shop.ovn", **DUAL, routed=None, routes=routes)
    args = appear(api, annotations=given)
    with attached(node, pod, config(provider="net1.shop.ovn"), args, ifname="net1") as result:
        assert [ip["address"] for ip in result["ips"]] == ["10.16.0.5/16", "fd00:10:16::5/112"]
        assert result["routes"] == [
            {"dst": "10.99.0.0/16", "gw": "10.16.0.9"},
            {"dst": "fd00:99::/64", "gw": "fd00:10:16::1"},
        ]
        ids = external_ids(node, AttachmentKey("c1", "net1").host_link)
        assert ids["iface-id"] == "web.shop.net1.shop.ovn"
        assert ids["ip"] == "10.16.0.5,fd00:10:16::5"


def test_one_network_twice_and_one_with_a_mac_alone(
    node: Node, pod: Path, api: FakeApiServer
) -> None:
    first, second = ("02:00:00:00:00:01", "02:00:00:00:00:02")
    alone = {"ip_address": None, "cidr": None, "gateway": None}
    given = written("n.shop.ovn", mac_address=first, ip_address="10.16.0.7")
    given |= written("n.shop.ovn.net2", mac_address=second, **alone)
    args = appear(api, annotations=given)
    conf = config(provider="n.shop.ovn")
    with (
        attached(node, pod, conf, args, ifname="net1") as one,
        attached(node, pod, conf, args, ifname="net2") as two,
    ):
        assert (one["interfaces"][0]["mac"], two["interfaces"][0]["mac"]) == (first, second)
        assert [ip["address"] for ip in one["ips"]] == ["10.16.0.7/16"]
        assert two.get("ips", []) == []
        ids = external_ids(node, AttachmentKey("c1", "net2").host_link)
        assert ids["iface-id"] == "web.shop.n.shop.ovn.net2"
        assert "ip" not in ids


def test_bandwidth_in_megabits(node: Node, pod: Path, api: FakeApiServer) -> None:
    args = appear(api, annotations=written(ingress_rate="8", ingress_burst="2"))
    assert node.switch
    with attached(node, pod, config("tap"), args):
        queue = node.switch.vsctl("--columns=other_config", "list", "Queue")
        assert 'burst="2000000", max-rate="8000000"' in queue


def test_annotations_that_the_runtime_tells_are_enough(
    node: Node, pod: Path, api: FakeApiServer
) -> None:
    """The API server's copy of the pod has no annotations yet."""
    args = appear(api)
    with attached(node, pod, config(runtimeConfig={POD_ANNOTATIONS: written()}), args) as result:
        assert result["interfaces"][0]["mac"] == MAC
    api.delete(*WEB)


def test_annotations_that_come_while_the_request_waits(
    node: Node, pod: Path, api: FakeApiServer
) -> None:
    args = appear(api, annotations=written(allocated=None, routed=None))
    with ThreadPoolExecutor(1) as thread:
        adding = thread.submit(node.call, "ADD", config(), "c1", pod, CNI_ARGS=args)
        api.put(*WEB, annotations=written(ip_address="10.16.0.6", routed=None))
        api.put(*WEB, annotations=written(ip_address="10.16.0.8"))
        assert adding.result().expect()["ips"][0]["address"] == "10.16.0.8/16"
    node.call("DEL", config(), "c1", pod, CNI_ARGS=pod_args()).expect()
    api.delete(*WEB)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"routed": None}, 'annotation ovn.kubernetes.io/routed is not "true" yet'),
        ({"ip_address": "10.16.0.555"}, "annotation ovn.kubernetes.io/ip_address: expected"),
        ({"latency": "10"}, "annotation ovn.kubernetes.io/latency: expected none"),
    ],
)
def test_what_cannot_be_is_tried_again_and_leaves_nothing(
    node: Node, pod: Path, api: FakeApiServer, change: dict[str, str], words: str
) -> None:
    args = appear(api, annotations=written(**change))
    answer = node.call("ADD", config(), "c1", pod, CNI_ARGS=args)
    assert (answer.code, words in answer.out["msg"]) == (11, True), answer.out
    api.delete(*WEB)


def test_without_an_api_server_it_is_tried_again(node: Node, pod: Path, api: FakeApiServer) -> None:
    args = pod_args(uid="anew")
    with api.cut():
        answer = node.call("ADD", config(), "c1", pod, CNI_ARGS=args)
        assert (answer.code, "the API server: " in answer.out["msg"]) == (11, True)
        api.put(*WEB, uid="anew", annotations=written())
    while (answer := node.call("ADD", config(), "c1", pod, CNI_ARGS=args)).code == 11:
        node.call("DEL", config(), "c1", pod, CNI_ARGS=args).expect()
    answer.expect()
    node.call("STATUS", config()).expect()
    node.call("DEL", config(), "c1", pod, CNI_ARGS=args).expect()
    api.delete(*WEB)


HELD = "10.16.0.5 of ovn-default is still that of web.shop (c1/eth0)"


def test_an_address_in_use(node: Node, pod: Path, api: FakeApiServer, web: str) -> None:
    """Another pod keeps it until its DEL, but the next container of the same pod takes it over."""
    other = appear(api, "other", annotations=written())
    node.call("ADD", config(), "c1", pod, CNI_ARGS=web).expect()
    answer = node.call("ADD", config(), "c2", pod, "net1", CNI_ARGS=other)
    assert (answer.code, HELD in answer.out["msg"]) == (11, True), answer.out
    anew = node.pod()
    with attached(node, anew, config(), web, "c3"):
        node.call("DEL", config(), "c1", pod, CNI_ARGS=web).expect()
        assert node.call("ADD", config(), "c2", pod, CNI_ARGS=other).code == 11
    node.call("ADD", config(), "c2", pod, CNI_ARGS=other).expect()
    node.call("DEL", config(), "c2", pod, CNI_ARGS=other).expect()
    node.lab.drop(anew)
    api.delete("shop", "other")


def test_an_address_is_still_in_use_after_a_restart() -> None:
    with clustered() as (node, api):
        web, other = (appear(api, name, annotations=written()) for name in ("web", "other"))
        pod = node.pod()
        node.call("ADD", config(), "c1", pod, CNI_ARGS=web).expect()
        node.stop()
        start(node)
        answer = node.call("ADD", config(), "c2", pod, "net1", CNI_ARGS=other)
        assert (answer.code, HELD in answer.out["msg"]) == (11, True), answer.out
        node.call("DEL", config(), "c1", pod, CNI_ARGS=pod_args()).expect()


@pytest.mark.parametrize("chosen", ["annotation", "runtime class"])
@pytest.mark.parametrize("lost", [False, True], ids=["", "its record is lost"])
def test_a_pod_has_a_mode_of_its_own(
    node: Node, pod: Path, api: FakeApiServer, chosen: str, lost: bool
) -> None:
    """One network serves containers (veth) and VMs; CHECK and DEL know which mode the pod had."""
    conf = config("veth")
    mode = {MODE: "tap"} if chosen == "annotation" else {}
    kata = "kata" if chosen == "runtime class" else "runc"
    args = appear(api, annotations=written() | mode, runtime_class=kata)
    result = node.call("ADD", conf, "c1", pod, CNI_ARGS=args).expect()
    assert result["interfaces"][1]["name"] == KEY.tap_link
    node.call("CHECK", {**conf, "prevResult": result}, "c1", pod, CNI_ARGS=args).expect()
    api.delete(*WEB)
    if lost:
        (node.run_dir / "state" / f"{KEY.digest}.json").unlink()
    node.call("DEL", conf, "c1", pod, CNI_ARGS=args).expect()


@pytest.mark.parametrize(
    ("mode", "words"),
    [("kata", "expected one of tc, "), ("macvtap", "macvtap does not go with the uplink ovs")],
)
def test_a_mode_that_is_none_is_named_by_its_annotation(
    node: Node, pod: Path, api: FakeApiServer, mode: str, words: str
) -> None:
    args = appear(api, annotations=written() | {MODE: mode})
    answer = node.call("ADD", config(), "c1", pod, CNI_ARGS=args)
    assert answer.code == 7
    assert answer.out["msg"].startswith(f"annotation {MODE}: {words}")
    api.delete(*WEB)
