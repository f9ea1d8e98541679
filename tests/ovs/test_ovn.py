"""Logical ports of a real OVN: ADD returns when ovn-controller has installed the port."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.testbed import ovn as ovns
from bench.testbed import probes
from bench.testbed.node import BIN, Answer, Node
from bench.testbed.ovn import BRIDGE, Ovn
from bench.testbed.slowness import SLOWNESS
from bench.testbed.switch import Datapath
from cni.config.settings import Ovs
from cni.daemon.pool_store import read_json
from cni.ovs import open_database
from cni.ovs.database import Database
from cni.ovs.port_ops import Add, Bind, Port, Remove
from cni.spec.types import AttachmentKey
from tests.contract.cnikit import script
from tests.ovs.ovskit import switch_of
from tests.ovs.test_attachments import row
from tests.waits import until

SECONDS = 20 * SLOWNESS
DEADLINE = 2  # of vmlinkd
MACS = {f"p{n}.shop": f"02:00:00:00:09:0{n}" for n in range(1, 5)}
UID = "7c9b2c5e-0001"
PORT = AttachmentKey("c1", "eth0").tap_link


@contextmanager
def running(datapath: Datapath, *kinds: str) -> Iterator[Ovn]:
    if reason := ovns.missing():
        pytest.skip(reason)
    with Ovn(kinds, datapath) as made:
        ports = {name: f"{mac} 10.9.0.{mac[-1]}" for name, mac in MACS.items()}
        made.add_switch("shop", ports)
        made.nbctl("lsp-set-options", "p4.shop", f"iface-id-ver={UID}")
        for node in made.nodes:
            settings = node.lab.dir / "vmlinkd.yaml"
            settings.write_text(f"deadline: {DEADLINE}\n")
            node.start((str(BIN / "vmlinkd"), "--config", str(settings)))
        yield made


@pytest.fixture(scope="module")
def ovn(datapath: Datapath) -> Iterator[Ovn]:
    with running(datapath, "ovs", "ovs") as made:
        yield made


@pytest.fixture
def fragile(datapath: Datapath) -> Iterator[Ovn]:
    """OVN for a single test, which may kill and restart the servers."""
    with running(datapath, "ovs") as made:
        yield made


@pytest.fixture(scope="module")
def node(ovn: Ovn) -> Node:
    return ovn.nodes[0]


@pytest.fixture
def database(node: Node) -> Iterator[Database]:
    assert node.switch
    with (
        node.namespace.entered(),
        closing(open_database(Ovs(switch_of(node).db), "test")) as connected,
    ):
        yield connected


def config(name: str, mode: str = "tap", **change: Any) -> dict[str, Any]:
    base = {"cniVersion": "1.1.0", "name": "net", "type": "vmlink", "mode": mode}
    return {**base, "ovs": {"bridge": BRIDGE, "ovn": True}, "mac": MACS.get(name, ""), **change}


def call(
    node: Node, verb: str, name: str, pod: Path | None, container: str = "c1", **change: Any
) -> Answer:
    args = f"K8S_POD_NAME={name.partition('.')[0]};K8S_POD_NAMESPACE=shop;K8S_POD_UID={UID}"
    args += ";IgnoreUnknown=1"
    return node.call(verb, config(name, **change), container, pod, CNI_ARGS=args)


@contextmanager
def attached(
    node: Node, name: str, pod: Path, container: str = "c1", **change: Any
) -> Iterator[dict[str, Any]]:
    try:
        yield call(node, "ADD", name, pod, container, **change).expect()
    finally:
        call(node, "DEL", name, pod, container, **change).expect()


def ids(node: Node, name: str = PORT) -> dict[str, str]:
    found: dict[str, str] = row(node, "Interface", name, "external_ids")[0]
    return found


def refused(answer: Answer, *words: str) -> None:
    assert answer.code == 11, answer
    assert [word for word in words if word not in answer.out["msg"]] == [], answer.out["msg"]
    assert answer.ms < (DEADLINE + 3) * 1000


def up(ovn: Ovn, port: str) -> None:
    """Wait until OVN says that the port is up, which may be later than its installation.

    A port that is removed before it is up keeps its chassis until ovn-controller recomputes
    everything: when the release has to wait for a transaction of its own, ovn-controller clears
    the chassis only of a port that is up (port_binding_set_down in OVN's controller/binding.c).
    """
    ovn.sbctl("wait-until", "Port_Binding", port, "up=true")


def test_an_add_returns_when_the_port_is_installed(ovn: Ovn, node: Node, pod: Path) -> None:
    with attached(node, "p1.shop", pod) as result:
        found = ids(node)
        assert found.pop("ovn-installed") == "true"
        assert {key: found[key] for key in ("iface-id", "iface-id-ver", "iface-status")} == {
            "iface-id": "p1.shop",
            "iface-id-ver": UID,
            "iface-status": "active",
        }
        assert found["attached-mac"] == MACS["p1.shop"] == result["interfaces"][0]["mac"]
        assert result["interfaces"][0]["mtu"] == ovns.MTU
        assert ovn.claimed("p1.shop") == ovn.chassis(0)
        up(ovn, "p1.shop")
        call(node, "CHECK", "p1.shop", pod, prevResult=result).expect()
        switch_of(node).vsctl("remove", "Interface", PORT, "external_ids", "ovn-installed")
        answer = call(node, "CHECK", "p1.shop", pod, prevResult=result)
        assert (answer.code, "expected ovn-installed true" in answer.out["msg"]) == (104, True)
    ovn.sbctl("wait-until", "Port_Binding", "p1.shop", "chassis=[]")


def test_pods_of_two_nodes_talk_with_full_packets(ovn: Ovn) -> None:
    pods = [node.pod() for node in ovn.nodes]
    for number, (node, pod) in enumerate(zip(ovn.nodes, pods, strict=True), 1):
        call(node, "ADD", f"p{number}.shop", pod, mode="veth").expect()
        node.run(["ip", "address", "add", f"10.9.0.{number}/24", "dev", "eth0"], pod)
    try:
        assert probes.ping(str(pods[0]), "10.9.0.2", 10, ovns.MTU - 28, dont_fragment=True) > 0
        assert [ovn.claimed(f"p{n}.shop") for n in (1, 2)] == [ovn.chassis(0), ovn.chassis(1)]
    finally:
        for number, (node, pod) in enumerate(zip(ovn.nodes, pods, strict=True), 1):
            call(node, "DEL", f"p{number}.shop", pod, mode="veth").expect()
            node.lab.drop(pod)


def test_a_port_that_ovn_does_not_know(node: Node, pod: Path) -> None:
    """A logical port that does not exist, and one that is meant for a pod with another UID."""
    other = {"bridge": BRIDGE, "ovn": True, "external_ids": {"iface-id-ver": "other"}}
    with ThreadPoolExecutor(2) as calls:
        unknown = calls.submit(call, node, "ADD", "p9.shop", pod)
        foreign = calls.submit(call, node, "ADD", "p4.shop", pod, "c2", ovs=other)
    refused(unknown.result(), "logical port p9.shop was not installed", "ovn-installed not set")
    refused(foreign.result(), "logical port p4.shop", "iface-id-ver but other")
    with attached(node, "p4.shop", pod):
        assert ids(node)["iface-id-ver"] == UID


def test_a_logical_port_is_taken_from_whoever_has_it(ovn: Ovn, node: Node, pod: Path) -> None:
    stray = "add-port br-int stray -- set Interface stray type=internal"
    switch_of(node).vsctl(*stray.split(), "external_ids:iface-id=p1.shop", "external_ids:a=b")
    with attached(node, "p1.shop", pod) as result:
        assert ids(node, "stray")["a"] == "b"
        assert "iface-id" not in ids(node, "stray")
        with attached(node, "p1.shop", pod, "c2"):
            assert "iface-id" not in ids(node)
            answer = call(node, "CHECK", "p1.shop", pod, prevResult=result)
            assert (answer.code, "iface-id p1.shop, found none" in answer.out["msg"]) == (104, True)
            assert ovn.claimed("p1.shop") == ovn.chassis(0)
    switch_of(node).vsctl("del-port", "stray")


SLOW = """case $CNI_COMMAND in
ADD) echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.1/24"}]}' ;;
DEL) touch %(dir)s/waits; until [ -e %(dir)s/go ]; do sleep 0.02; done ;;
esac"""


def test_a_late_add_leaves_the_port_to_the_newer_sandbox(
    ovn: Ovn, node: Node, pod: Path, tmp_path: Path
) -> None:
    """The ADD of the pod's first sandbox waits for a DEL, and meanwhile there is a second one."""
    script(tmp_path / "bin", "slow", SLOW % {"dir": tmp_path})
    slow = partial(config, "p1.shop", ipam={"type": "slow"})
    args = "K8S_POD_NAME=p1;K8S_POD_NAMESPACE=shop"
    send = partial(node.call, CNI_PATH=str(tmp_path / "bin"), CNI_ARGS=args)
    with ThreadPoolExecutor(2) as calls:
        delete = calls.submit(send, "DEL", slow(), "c1", pod)
        until((tmp_path / "waits").exists)
        late = calls.submit(send, "ADD", slow(), "c1", pod)
        time.sleep(0.2)
        with attached(node, "p1.shop", pod, "c2"):
            (tmp_path / "go").touch()
            delete.result().expect()
            answer = late.result()
            assert answer.code == 101, answer
            assert "logical port p1.shop belongs to c2/eth0" in answer.out["msg"]
            assert ids(node, AttachmentKey("c2", "eth0").tap_link)["iface-id"] == "p1.shop"
            assert ovn.claimed("p1.shop") == ovn.chassis(0)
            send("DEL", slow(), "c1", pod).expect()
        with attached(node, "p1.shop", pod):
            assert ids(node)["iface-id"] == "p1.shop"


def test_what_ovn_wrote_about_a_former_port_is_not_believed(
    ovn: Ovn, node: Node, database: Database
) -> None:
    kit, pod = AttachmentKey("kit", "p"), AttachmentKey("c1", "eth0")
    blank = Port(BRIDGE, "p0", "internal", external_ids={"iface-id": "p1.shop"}, ovn=True)
    database.submit(Add("test", kit, blank)).wait(SECONDS, "late")
    bound = Port(BRIDGE, "p0", "internal", external_ids={"iface-id": "p2.shop"}, ovn=True)
    with stopped(ovn.controllers[0].pid):
        pending = database.submit(Bind("test", kit, pod, bound))
        database.submit(Remove("test", AttachmentKey("none", "x"))).wait(SECONDS, "late")
        assert "ovn-installed" not in ids(node, "p0")
        stale = ("external_ids:ovn-installed=true", "external_ids:ovn-installed-ts=1000")
        switch_of(node).vsctl("--no-wait", "set", "Interface", "p0", *stale)
        database.submit(Remove("test", AttachmentKey("none", "x"))).wait(SECONDS, "late")
        assert not pending.future.done()
    pending.wait(SECONDS, "late")
    assert ovn.claimed("p2.shop") == ovn.chassis(0)
    found = ids(node, "p0")
    assert (found["iface-id"], found["vmlink-container"]) == ("p2.shop", "c1")
    database.submit(Remove("test", pod)).wait(SECONDS, "late")
    switch_of(node).vsctl(
        "set", "Open_vSwitch", ".", "external_ids:test=1"
    )  # returns when p0's link is gone


def test_a_kit_of_the_pool_is_a_logical_port_once_it_is_bound(fragile: Ovn) -> None:
    (node,) = fragile.nodes
    settings, pod = node.lab.dir / "vmlinkd.yaml", node.pod()
    settings.write_text("pools: {net: {tap: {size: 1}}}\n")
    node.stop()
    node.start((str(BIN / "vmlinkd"), "--config", str(settings)))
    call(node, "STATUS", "p1.shop", None).expect()
    directory, end = node.run_dir / "pool" / "net@tap", time.monotonic() + SECONDS
    for name in ("p1.shop", "p2.shop", "p1.shop"):
        while read_json(directory / "pool.json").get("ready") != 1 or not list(kits(directory)):
            assert time.monotonic() < end
            time.sleep(0.01)
        (kit,) = kits(directory)
        assert not {"iface-id", "ovn-installed", "attached-mac"} & set(ids(node, f"vlt{kit}"))
        with attached(node, name, pod):
            found = ids(node, f"vlt{kit}")
            assert (found["iface-id"], found["ovn-installed"]) == (name, "true")
            assert fragile.claimed(name) == fragile.chassis(0)
    node.lab.drop(pod)


def kits(directory: Path) -> Iterator[str]:
    return (path.stem for path in directory.glob("*.json") if path.name != "pool.json")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_ovn_controller_is_away_and_comes_late(fragile: Ovn) -> None:
    (node,) = fragile.nodes
    pod, before = node.pod(), node.contents()
    fragile.kill_controller(0)
    refused(call(node, "ADD", "p1.shop", pod), "is ovn-controller running", "port p1.shop")
    assert node.contents() == before
    with ThreadPoolExecutor(1) as calls:
        late = calls.submit(call, node, "ADD", "p1.shop", pod)
        rows = ("wait-until", "Interface", PORT, "ofport!=0")
        switch_of(node).vsctl(*rows)
        fragile.start_controller(0)
    late.result().expect()
    call(node, "DEL", "p1.shop", pod).expect()


def test_the_southbound_database_is_away(fragile: Ovn) -> None:
    (node,) = fragile.nodes
    pod, before = node.pod(), node.contents()
    fragile.kill_server("sb")
    refused(call(node, "ADD", "p3.shop", pod), f"connected to {fragile.sb}")
    assert node.contents() == before
    fragile.start_server("sb")
    while call(node, "ADD", "p3.shop", pod).code == 11:
        call(node, "DEL", "p3.shop", pod)
    assert fragile.claimed("p3.shop") == fragile.chassis(0)
    call(node, "DEL", "p3.shop", pod).expect()
    assert node.contents() == before


def test_gc_releases_the_port(ovn: Ovn, node: Node, pod: Path) -> None:
    before = node.contents()
    call(node, "ADD", "p1.shop", pod).expect()
    up(ovn, "p1.shop")
    valid: dict[str, Any] = {"cni.dev/valid-attachments": []}
    call(node, "GC", "p1.shop", None, **valid).expect()
    assert node.contents() == before
    ovn.sbctl("wait-until", "Port_Binding", "p1.shop", "chassis=[]")


def test_status_and_what_cannot_be(ovn: Ovn, node: Node, pod: Path) -> None:
    assert node.call("STATUS", config("p1.shop")).code == 0
    wrong = {"bridge": "br-phys", "ovn": True}
    for verb, code in (("STATUS", 50), ("ADD", 7)):
        answer = call(node, verb, "p1.shop", pod, ovs=wrong)
        assert (answer.code, answer.out["msg"][:29]) == (code, "ovs.bridge: OVN's is br-int, ")
    switch_of(node).vsctl("remove", "Open_vSwitch", ".", "external_ids", "ovn-remote")
    while not (answer := node.call("STATUS", config("p1.shop"))).code:
        pass  # until vmlinkd has noticed the change
    assert (answer.code, "no external_ids:ovn-remote" in answer.out["msg"]) == (50, True)
    switch_of(node).vsctl("set", "Open_vSwitch", ".", f'external_ids:ovn-remote="{ovn.sb}"')


def test_of_two_sandboxes_at_once_one_keeps_the_port(node: Node, pod: Path) -> None:
    boxes = ("c1", "c2")
    for _ in range(5):
        with ThreadPoolExecutor(2) as calls:
            answers = list(calls.map(lambda box: call(node, "ADD", "p1.shop", pod, box), boxes))
        taps = {box: AttachmentKey(box, "eth0").tap_link for box in boxes}
        made = [box for box, answer in zip(boxes, answers, strict=True) if not answer.code]
        assert made, answers
        holders = [box for box in made if ids(node, taps[box]).get("iface-id") == "p1.shop"]
        assert len(holders) == 1
        for box in boxes:
            call(node, "DEL", "p1.shop", pod, box).expect()
