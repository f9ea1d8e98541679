"""Requests from kube-ovn's own plugin: vmlinkd serves VMs and passes the rest on."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.kube_apiserver import FakeApiServer
from bench.testbed.node import BIN, Node
from bench.testbed.slowness import SLOWNESS
from cni.kubeovn.pod_annotations import MODE
from cni.spec.types import AttachmentKey
from tests.ovs.kubeovnkit import DUAL, MAC, KubeOvnDaemon, clustered, plugin_request, send, written
from tests.ovs.ovskit import BRIDGE

KEY = AttachmentKey("c1", "eth0")
VM, PLAIN = ("shop", "web"), ("shop", "plain")
REPLY = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Odd:  kept \r\nContent-Length: 16\r\n"
    b'\r\n{"mtu": 1400}  \n'
)


@pytest.fixture(scope="module")
def sockets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The paths of vmlinkd's and kube-ovn's sockets."""
    directory = tmp_path_factory.mktemp("s")
    return directory / "vmlink.sock", directory / "kube-ovn.sock"


@pytest.fixture(scope="module")
def cluster(sockets: tuple[Path, Path]) -> Iterator[tuple[Node, FakeApiServer]]:
    ours, theirs = sockets
    network = {"mode": "tc", "ovs": {"bridge": BRIDGE}, "mtu": 1400}
    served = {"listen": str(ours), "daemon": str(theirs), "network": network}
    with clustered(
        deadline=3,
        runtime_classes={"kata": "tap"},
        kubeovn={**served, "providers": ["vms.shop.ovn"]},
    ) as (node, api):
        api.put(*VM, annotations=written(**DUAL), runtime_class="kata")
        api.put(*PLAIN, annotations=written(ip_address="10.16.0.9"), runtime_class="runc")
        yield node, api
    assert not ours.exists()


@pytest.fixture(scope="module")
def node(cluster: tuple[Node, FakeApiServer]) -> Node:
    return cluster[0]


@pytest.fixture
def api(cluster: tuple[Node, FakeApiServer]) -> FakeApiServer:
    return cluster[1]


@pytest.fixture
def ours(sockets: tuple[Path, Path]) -> Path:
    return sockets[0]


@pytest.fixture
def theirs(sockets: tuple[Path, Path]) -> Iterator[KubeOvnDaemon]:
    with KubeOvnDaemon(sockets[1], REPLY) as daemon:
        yield daemon


def test_a_vm_is_served_here(node: Node, pod: Path, ours: Path, theirs: KubeOvnDaemon) -> None:
    routes = [{"dst": "10.99.0.0/16", "gw": "10.16.0.9"}]
    answer, body = send(ours, plugin_request("add", pod, routes=routes))
    assert answer.startswith(b"HTTP/1.1 200 ")
    subnets = {
        "IPv4": ("10.16.0.5", "10.16.0.0/16", "10.16.0.1"),
        "IPv6": ("fd00:10:16::5", "fd00:10:16::/112", "fd00:10:16::1"),
    }
    assert json.loads(body) == {
        "ips": [
            {"protocol": p, "ip": ip, "cidr": cidr, "gateway": gateway}
            for p, (ip, cidr, gateway) in subnets.items()
        ],
        "mac_address": MAC,
        "routes": routes,
        "mtu": 1400,
        "nicname": "eth0",
        "dns": {},
        "error": "",
    }
    assert node.switch
    assert KEY.tap_link in node.switch.vsctl("list-ports", BRIDGE).split()
    answer, body = send(ours, plugin_request("del", pod))
    assert (answer.startswith(b"HTTP/1.1 204 "), body) == (True, b"")
    assert theirs.got == []


@pytest.mark.parametrize(
    "change",
    [
        {"pod_name": "plain"},
        {"pod_name": "plain", "unheard": ["of", {"e": "\u00e9"}]},
        {"cni_type": "macvlan", "provider": "macvlan.shop"},
        {"deviceID": "0000:00:01.0"},
        {"vhost_user_socket_volume_name": "v"},
    ],
    ids=["a plain pod", "an unknown field", "addresses alone", "a VF", "a socket of kube-ovn's"],
)
def test_what_is_kube_ovns_is_passed_on_unchanged(
    pod: Path, ours: Path, theirs: KubeOvnDaemon, change: dict[str, Any]
) -> None:
    requests = [plugin_request(verb, pod, **change) for verb in ("add", "del")]
    assert [send(ours, request)[0] for request in requests] == [REPLY, REPLY]
    assert theirs.got == requests


def test_any_other_request_is_passed_on(ours: Path, theirs: KubeOvnDaemon) -> None:
    raw = b"GET /api/v1/unheard?of=1 HTTP/1.1\r\nHost: dummy\r\n\r\n"
    assert send(ours, raw)[0] == REPLY
    assert theirs.got == [raw]


def test_a_second_request_on_a_connection_is_not_passed_on(
    pod: Path, ours: Path, theirs: KubeOvnDaemon
) -> None:
    """It might be for a VM, and vmlinkd would not see it."""
    request = plugin_request("add", pod, pod_name="plain")
    with socket.socket(socket.AF_UNIX) as conn:
        conn.settimeout(20 * SLOWNESS)
        conn.connect(str(ours))
        conn.sendall(request)
        assert conn.recv(65536) == REPLY
        conn.sendall(request)
        with suppress(ConnectionResetError):
            assert conn.recv(65536) == b""
    assert theirs.got == [request]


def test_kube_ovns_daemon_is_away(pod: Path, ours: Path) -> None:
    answer, body = send(ours, plugin_request("add", pod, pod_name="plain"))
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert "kube-ovn's daemon does not answer at " in json.loads(body)["error"]


def test_a_provider_and_an_annotation_choose_as_well(
    node: Node, pod: Path, api: FakeApiServer, ours: Path
) -> None:
    given = written("vms.shop.ovn", routed=None)
    api.put("shop", "both", annotations=given | written() | {MODE: "veth"})
    api.put("shop", "listed", annotations=given)
    for name, where, port in (
        ("both", {}, KEY.host_link),
        (
            "listed",
            {"provider": "vms.shop.ovn", "if_name": "n1"},
            AttachmentKey("c1", "n1").host_link,
        ),
    ):
        answer, body = send(ours, plugin_request("add", pod, pod_name=name, **where))
        assert answer.startswith(b"HTTP/1.1 200 "), body
        gateways = [ip["gateway"] for ip in json.loads(body)["ips"]]
        assert gateways == ([""] if where else ["10.16.0.1"])
        assert node.switch
        assert port in node.switch.vsctl("list-ports", BRIDGE).split()
        links = node.run(["ip", "-o", "link"], pod).stdout
        assert ("tun" in links or "vlt" in links) == bool(where), (
            "the pod has a tap in mode veth, or none in mode tc"
        )
        # The DEL goes where the ADD went, whatever the annotations say by now.
        api.put("shop", name, annotations={MODE: None})
        assert send(ours, plugin_request("del", pod, pod_name=name, **where))[0].startswith(
            b"HTTP/1.1 204 "
        )
        api.delete("shop", name)


@pytest.mark.parametrize(
    ("raw", "status", "words"),
    [
        (b"POST /api/v1/add HTTP/1.1\r\nHost: d\r\nContent-Length: 1\r\n\r\n{", 400, "not JSON"),
        (b"POST /api/v1/add HTTP/1.1\r\nHost: d\r\nContent-Length: x\r\n\r\n", 400, "not HTTP"),
        (b"HELO\r\n\r\n", 400, "not HTTP"),
        (b"POST / HTTP/1.1\r\nHost: d\r\nX: " + b"x" * 70000 + b"\r\n\r\n", 400, "not HTTP"),
        (plugin_request("add", "", pod_name=["x"]), 400, "pod_name: expected a text"),
        (plugin_request("add", "", pod_name="a;MAC=b"), 400, "pod_name: expected a name"),
        (plugin_request("add", "/nowhere", container_id="/"), 500, "CNI_CONTAINERID: '/' must"),
        (plugin_request("add", "/nowhere"), 500, "CNI_NETNS: cannot open '/nowhere'"),
        (plugin_request("add", "", pod_name="nobody"), 500, "pod shop/nobody: is not among"),
    ],
)
@pytest.mark.usefixtures("node")
def test_what_is_wrong_is_named(ours: Path, raw: bytes, status: int, words: str) -> None:
    answer, body = send(ours, raw)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert words in json.loads(body)["error"]


def test_the_socket_is_roots(node: Node, ours: Path) -> None:
    assert ours.stat().st_mode & 0o777 == 0o600
    assert os.access(ours, os.R_OK)


def test_a_network_that_is_no_good_is_named_at_the_start(node: Node, tmp_path: Path) -> None:
    settings = tmp_path / "vmlinkd.yaml"
    network = {"mode": "macvtap", "ovs": {"bridge": "br0"}}
    section = {"listen": str(tmp_path / "sock"), "network": network}
    settings.write_text(json.dumps({"kubeovn": section}))
    command = [str(BIN / "vmlinkd"), "--run-dir", str(tmp_path / "run"), "--config", str(settings)]
    done = node.run(command, check=False)
    assert done.returncode == 1
    assert "kubeovn.network: mode: macvtap does not go with the uplink ovs" in done.stderr
