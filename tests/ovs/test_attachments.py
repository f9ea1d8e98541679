"""Attachments to Open vSwitch through the real client: rows, links, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import BIN, CLIENT, Node
from bench.testbed.switch import Datapath
from cni.ovs import schema
from cni.spec.types import AttachmentKey
from tests.ovs.ovskit import BRIDGE, switch_of

KEY = AttachmentKey("c1", "eth0")
PORTS = {"tc": KEY.host_link, "veth": KEY.host_link, "tap": KEY.tap_link}
KUBELET = "IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop"


def config(node: Node, mode: str, **change: Any) -> dict[str, Any]:
    ipam = node.ipam("10.9.0.0/24", "fd00:9::/64", routes=["0.0.0.0/0", "::/0"])
    base = {"cniVersion": "1.1.0", "name": "net", "type": "vmlink", "ipam": ipam}
    return {**base, "mode": mode, "ovs": {"bridge": BRIDGE}, **change}


@contextmanager
def attached(node: Node, pod: Path, conf: dict[str, Any], **env: str) -> Iterator[dict[str, Any]]:
    try:
        yield node.call("ADD", conf, "c1", pod, "eth0", CLIENT, **env).expect()
    finally:
        node.call("DEL", conf, "c1", pod).expect()


def row(node: Node, table: str, name: str, *columns: str) -> list[Any]:
    """The columns of a row, decoded from OVSDB's JSON."""
    shown = ["--format=json", f"--columns={','.join(columns)}"]
    out = switch_of(node).vsctl(*shown, "list", table, name)
    (values,) = json.loads(out)["data"]
    return [plain(value) for value in values]


def plain(value: Any) -> Any:
    if isinstance(value, list) and value[0] in ("map", "set"):
        return dict(value[1]) if value[0] == "map" else value[1]
    return value


def links(node: Node, where: Path | None = None) -> dict[str, Any]:
    shown = json.loads(node.run(["ip", "-json", "-details", "address"], where).stdout)
    return {link["ifname"]: link for link in shown}


@pytest.mark.parametrize("ids", [{"a": "\ud800"}, {"a": "b\0"}, {"\udcff": "b"}])
def test_ids_that_no_database_takes(node: Node, pod: Path, ids: dict[str, str]) -> None:
    """One such text would have the connection to Open vSwitch break again and again."""
    bad = config(node, "tap", ovs={"bridge": BRIDGE, "external_ids": ids})
    answer = node.call("ADD", bad, "c2", pod)
    assert (answer.code, "ovs.external_ids." in answer.out["msg"]) == (7, True), answer
    args = "K8S_POD_NAME=\udcff;K8S_POD_NAMESPACE=shop"
    answer = node.call("ADD", config(node, "tap"), "c2", pod, CNI_ARGS=args)
    assert (answer.code, "CNI_ARGS K8S_POD_NAME" in answer.out["msg"]) == (4, True), answer
    with attached(node, pod, config(node, "tap"), CNI_ARGS=KUBELET):
        pass


@pytest.mark.parametrize("mode", PORTS)
def test_the_rows_of_a_port(node: Node, pod: Path, mode: str) -> None:
    ovs = {"bridge": BRIDGE, "vlan": 7, "trunk": [{"minID": 20, "maxID": 22}]}
    conf = config(node, mode, ovs=ovs, mac="02:00:00:00:00:07")
    with attached(node, pod, conf, CNI_ARGS=KUBELET):
        name = PORTS[mode]
        assert row(node, "Port", name, "tag", "trunks", "vlan_mode") == [
            7,
            [20, 21, 22],
            "native-untagged",
        ]
        (ids, ofport) = row(node, "Interface", name, "external_ids", "ofport")
        assert ids == {
            "attached-mac": "02:00:00:00:00:07",
            "iface-id": "web.shop",
            schema.OWNER: str(node.run_dir),
            schema.CONTAINER: "c1",
            schema.IFNAME: "eth0",
        }
        assert ofport > 0
        assert name in switch_of(node).vsctl("list-ports", BRIDGE).split()


@pytest.mark.parametrize("mode", PORTS)
def test_check_and_its_second_opinion(node: Node, pod: Path, mode: str) -> None:
    conf = config(node, mode)
    with attached(node, pod, conf) as result:
        assert node.call("CHECK", {**conf, "prevResult": result}, "c1", pod).code == 0
        wrong = json.loads(json.dumps(result))
        wrong["ips"][0]["address"] = "10.9.0.77/24"
        answer = node.call("CHECK", {**conf, "prevResult": wrong}, "c1", pod)
        assert (answer.code, "10.9.0.77" in answer.out["msg"]) == (104, True)
        switch_of(node).vsctl("set", "Port", PORTS[mode], "tag=9")
        answer = node.call("CHECK", {**conf, "prevResult": result}, "c1", pod)
        assert (answer.code, "expected tag []" in answer.out["msg"]) == (104, True)


@pytest.mark.parametrize("mode", PORTS)
def test_check_finds_a_port_that_the_node_hears(
    node: Node, pod: Path, datapath: Datapath, mode: str
) -> None:
    if datapath == "system":
        pytest.skip("only a userspace datapath leaves frames to the node's stack")
    conf = config(node, mode)
    with attached(node, pod, conf) as result:
        node.run(["tc", "qdisc", "del", "dev", PORTS[mode], "clsact"])
        answer = node.call("CHECK", {**conf, "prevResult": result}, "c1", pod)
        assert answer.code == 104
        assert "keeps frames from the node's stack" in answer.out["msg"]


def test_a_tap_leaves_the_pods_namespace_alone(node: Node, pod: Path) -> None:
    before = links(node, pod)
    conf = config(
        node, "tap", mtu=1400, queues=2, tap={"owner": 70007, "group": 80008, "name": "fc0"}
    )
    with attached(node, pod, conf) as result:
        assert links(node, pod) == before
        tap = links(node)["fc0"]
        assert tap["mtu"] == 1400
        data = tap["linkinfo"]["info_data"]
        assert (data["user"], data["group"], data["multi_queue"]) == (70007, 80008, True)
        assert [a for a in tap["addr_info"] if a["family"].startswith("inet")] == []
        first, second = result["interfaces"]
        assert (first["name"], first["sandbox"], first["mtu"]) == ("eth0", str(pod), 1400)
        assert second == {"name": "fc0", "mac": tap["address"], "mtu": 1400}
        assert {ip["interface"] for ip in result["ips"]} == {0}


def test_a_placeholder_tells_what_the_guest_has(node: Node, pod: Path) -> None:
    with attached(node, pod, config(node, "tap", placeholder=True)) as result:
        shown = links(node, pod)["eth0"]
        assert shown["linkinfo"]["info_kind"] in ("dummy", "ifb")
        assert shown["address"] == result["interfaces"][0]["mac"]
        addresses = {f"{a['local']}/{a['prefixlen']}" for a in shown["addr_info"]}
        assert addresses == {ip["address"] for ip in result["ips"]}
        routes = node.run(["ip", "route"], pod).stdout
        assert "default via 10.9.0.1" in routes
    assert "eth0" not in links(node, pod)


def test_a_pod_behind_a_userspace_datapath_finishes_its_checksums(
    node: Node, pod: Path, datapath: Datapath
) -> None:
    """The kernel's datapath, as a bridge, leaves that to whoever sends the frame out."""
    in_kernel = datapath == "system"
    with attached(node, pod, config(node, "veth")):
        shown = node.run(["ethtool", "-k", "eth0"], pod).stdout
        assert f"tx-checksumming: {'on' if in_kernel else 'off'}" in shown
    with attached(node, pod, config(node, "tap")):
        device = json.loads(node.run(node.ctl("device", "c1")).stdout)[0]
        assert device["offload"] is in_kernel


def test_the_mtu_is_that_of_the_bridge(node: Node, pod: Path) -> None:
    with attached(node, pod, config(node, "tap")) as result:
        assert result["interfaces"][0]["mtu"] == links(node)[BRIDGE]["mtu"]


@pytest.mark.parametrize("mode", PORTS)
def test_a_del_that_knows_nothing_finds_the_port(node: Node, pod: Path, mode: str) -> None:
    conf = config(node, mode)
    node.call("ADD", conf, "c1", pod).expect()
    for record in (node.run_dir / "state").glob("*.json"):
        record.unlink()
    node.call("DEL", conf, "c1", None).expect()
    assert PORTS[mode] not in switch_of(node).vsctl("list-ports", BRIDGE).split()
    assert PORTS[mode] not in links(node)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"ovs": {"bridge": "br9"}}, 7, "ovs.bridge: there is no bridge br9 (there is br0)"),
        ({"tap": {"name": BRIDGE}}, 7, f"tap.name: {BRIDGE} exists"),
    ],
)
def test_an_add_that_cannot_be(
    node: Node, pod: Path, change: dict[str, Any], code: int, words: str
) -> None:
    answer = node.call("ADD", config(node, "tap", **change), "c1", pod)
    assert (answer.code, answer.out["code"]) == (code, code)
    assert answer.out["msg"].startswith(words)


def test_a_name_that_is_another_ports(node: Node, pod: Path) -> None:
    name = KEY.tap_link
    switch_of(node).vsctl("add-port", BRIDGE, name, "--", "set", "Interface", name, "type=patch",
                      "options:peer=x")  # fmt: skip
    answer = node.call("ADD", config(node, "tap"), "c1", pod)
    assert (answer.code, "identical values" in answer.out["msg"]) == (105, True)
    assert name not in links(node)
    switch_of(node).vsctl("del-port", name)


def test_status(node: Node) -> None:
    assert node.call("STATUS", config(node, "tap")).code == 0
    answer = node.call("STATUS", config(node, "tap", ovs={"bridge": "br9"}))
    assert (answer.code, "no bridge br9" in answer.out["msg"]) == (50, True)
    answer = node.call("STATUS", config(node, "vhostuser"))
    assert (answer.code, "has no DPDK; set other_config" in answer.out["msg"]) == (50, True)
    answer = node.call("ADD", config(node, "vhostuser"), "c1", node.path, CNI_NETNS_OVERRIDE="1")
    assert (answer.code, "has no DPDK" in answer.out["msg"]) == (50, True)


def test_bandwidth_towards_the_pod_is_the_switchs(node: Node, pod: Path) -> None:
    limit = {"ingressRate": 8_000_000, "ingressBurst": 1_000_000}
    with attached(node, pod, config(node, "tap", bandwidth=limit)):
        (qos,) = row(node, "Port", KEY.tap_link, "qos")
        kind, config_, queues = row(node, "QoS", qos[1], "type", "other_config", "queues")
        assert (kind, config_) == ("linux-htb", {"max-rate": "8000000"})
        assert row(node, "Queue", queues[0][1], "other_config") == [
            {"burst": "1000000", "max-rate": "8000000"}
        ]
        assert "htb" in node.run(["tc", "qdisc", "show", "dev", KEY.tap_link]).stdout


@pytest.mark.parametrize("mode", ["veth", "tap"])
def test_bandwidth_away_from_the_pod(node: Node, pod: Path, datapath: Datapath, mode: str) -> None:
    """The userspace datapath takes its copy before the kernel polices: no limit would apply."""
    limit = {"egressRate": 8_000_000, "egressBurst": 1_000_000}
    if datapath == "system":
        with attached(node, pod, config(node, mode, bandwidth=limit)):
            shown = node.run(["tc", "filter", "show", "dev", PORTS[mode], "ingress"]).stdout
            assert "rate 8Mbit" in shown
        return
    answer = node.call("ADD", config(node, mode, bandwidth=limit), "c1", pod)
    assert answer.code == 105
    assert answer.out["msg"].startswith("bandwidth.egressRate: the userspace datapath cannot")


def test_status_and_add_while_the_database_is_away(fragile: Node) -> None:
    settings = fragile.lab.dir / "vmlinkd.yaml"
    settings.write_text("deadline: 1\n")
    fragile.start((str(BIN / "vmlinkd"), "--config", str(settings)))
    conf, pod, before = config(fragile, "tap"), fragile.pod(), fragile.contents()
    fragile.call("STATUS", conf).expect()
    switch_of(fragile).kill_ovsdb()
    answer = fragile.call("STATUS", conf)
    assert (answer.code, "is ovsdb-server running?" in answer.out["msg"]) == (50, True)
    answer = fragile.call("ADD", conf, "c1", pod)
    assert (answer.code, "is ovsdb-server running?" in answer.out["msg"]) == (11, True)
    assert not list((fragile.run_dir / "state").iterdir()), (
        "nothing was sent, yet there is a record"
    )
    switch_of(fragile).start_ovsdb()
    while (answer := fragile.call("ADD", conf, "c1", pod)).code == 11:
        fragile.call("DEL", conf, "c1", pod)
    answer.expect()
    fragile.call("DEL", conf, "c1", pod).expect()
    assert fragile.contents() == before
    fragile.lab.drop(pod)


def test_rows_that_a_reboot_left_are_collected(fragile: Node) -> None:
    fragile.start()
    pod, conf = fragile.pod(), config(fragile, "tap")
    fragile.call("ADD", conf, "c1", pod).expect()
    fragile.call("ADD", conf, "c2", pod).expect()
    fragile.stop()
    (fragile.run_dir / "state" / f"{KEY.digest}.json").unlink()
    fragile.run(["ip", "link", "del", KEY.tap_link])
    fragile.start()
    other = AttachmentKey("c2", "eth0").tap_link
    fragile.call("STATUS", conf).expect()  # answered once vmlinkd is connected to ovsdb
    assert switch_of(fragile).vsctl("list-ports", BRIDGE).split() == [other]
    for name in ("c1", "c2"):
        fragile.call("DEL", conf, name, pod).expect()
    fragile.lab.drop(pod)
