"""Bandwidth limits hold in both directions, for every way to attach, and DEL removes them."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from bench.testbed.node import Answer, Node
from cni.kernel import ethtool, redirect
from cni.spec.types import AttachmentKey
from tests.netns.nslib import present
from tests.netns.test_frames import ADDRESSES, PROBES, answers
from tests.netns.wirelib import (
    POD_MAC,
    Attachment,
    Guest,
    Port,
    Topology,
    bridged,
    chained,
    mastered,
    rebuilt,
    unfinished,
)

OUTSIDE_MAC = "02:00:00:00:0f:01"
RATE = 50_000_000  # bit/s
LIMIT = {"ingressRate": RATE, "ingressBurst": 64 << 13}
LIMIT |= {"egressRate": RATE, "egressBurst": 64 << 13}
SECONDS = 0.7
ENGINES = [name for name, reason in redirect.supported().items() if not reason]
WAYS: dict[str, tuple[Topology, dict[str, Any]]] = {
    **{f"tc, {engine}": (bridged, {"redirect": engine}) for engine in ENGINES},
    **{f"tc chained, {engine}": (chained, {"redirect": engine}) for engine in ENGINES},
    "veth": (bridged, {"mode": "veth"}),
    "tap": (bridged, {"mode": "tap"}),
    "macvtap": (mastered, {"mode": "macvtap", "mac": POD_MAC}),
    "macvtap chained": (chained, {"mode": "macvtap"}),
}
IFB = [way for way in WAYS if way in ("veth", "tap")]

Workload = Port | Guest  # the pod's end: a process on its eth0, or a VMM


def frame(source: str, destination: str) -> bytes:
    return bytes(
        Ether(src=source, dst=destination)
        / IP(src="10.77.0.99", dst="10.77.0.98")
        / UDP(sport=1, dport=2)
        / Raw(bytes(8900))
    )


def inside(attached: Attachment, way: str) -> Workload:
    """The end of the attachment that the workload in the pod uses."""
    return attached.kept(Port(attached.namespace, "eth0")) if way == "veth" else attached.guest()


def bits_per_second(sender: Workload, receiver: Workload, data: bytes) -> float:
    """The rate at which frames arrive while the sender sends as fast as it can."""
    stop = threading.Event()

    def pump() -> None:
        while not stop.is_set():
            try:
                sender.send(data)
            except OSError:  # ENOBUFS or a timeout: the queue is full
                time.sleep(0.001)

    # Frames that nobody reads from a macvtap still count against the sender's buffer.
    if isinstance(sender, Port):
        sender.socket.settimeout(0.1)
    thread = threading.Thread(target=pump)
    thread.start()
    try:
        receive_for(receiver, 0.3)  # the bucket starts full: let the burst pass
        start = time.monotonic()
        return receive_for(receiver, SECONDS) * 8 / (time.monotonic() - start)
    finally:
        stop.set()
        thread.join()


def receive_for(receiver: Workload, seconds: float) -> int:
    """How many bytes arrive in that time."""
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        count += len(receiver.receive(0.1) or b"")
    return count


def speeds(node: Node, way: str, **conf: Any) -> tuple[float, float]:
    """(towards the pod, away from it) in bits per second."""
    topology, keys = WAYS[way]
    with topology(node, **keys, **conf) as attached:
        attached.add()
        port, workload = attached.port(), inside(attached, way)
        return (
            bits_per_second(port, workload, frame(OUTSIDE_MAC, POD_MAC)),
            bits_per_second(workload, port, frame(POD_MAC, OUTSIDE_MAC)),
        )


@pytest.mark.parametrize("way", WAYS)
def test_a_limit_holds_both_ways(node: Node, way: str) -> None:
    free, limited = speeds(node, way), speeds(node, way, bandwidth=LIMIT)
    for without, found in zip(free, limited, strict=True):
        assert 0.6 * RATE < found < 1.15 * RATE
        assert without > 3 * found


@pytest.mark.parametrize("way", ["tc, cls_bpf", "tap"])
@pytest.mark.parametrize("burst", [64 << 13, 9018 * 8], ids=["whole", "cut by tbf"])
def test_what_a_sender_left_unfinished_is_finished_behind_the_limit(
    node: Node, way: str, burst: int
) -> None:
    ether, flow = Ether(src=POD_MAC, dst=OUTSIDE_MAC), {"src": "10.77.0.98", "dst": "10.77.0.99"}
    payload = bytes(range(256)) * 80
    topology, keys = WAYS[way]
    with topology(node, **keys, bandwidth=LIMIT | {"egressBurst": burst}) as attached:
        attached.add()
        port, guest = attached.port(), inside(attached, way)
        assert isinstance(guest, Guest)
        with node.namespace.entered():
            ethtool.stop_tx_checksum(socket.if_nametoindex(f"p-{attached.pod.name}"))
        header, frame = unfinished(ether, flow, payload, segment=1024)
        guest.send(frame, header)
        received = [present(port.receive()) for _ in range(20)]
    assert b"".join(frame[54:] for frame in received) == payload
    assert [frame[14:] for frame in received] == [rebuilt(frame) for frame in received]


@pytest.mark.parametrize("way", ["tc, cls_bpf", *IFB, "macvtap"])
@pytest.mark.parametrize("limited", ["ingress", "egress"])
def test_the_other_way_is_free(node: Node, way: str, limited: str) -> None:
    one = {key: value for key, value in LIMIT.items() if key.startswith(limited)}
    towards, away = speeds(node, way, runtimeConfig={"bandwidth": one})
    held, free = (towards, away) if limited == "ingress" else (away, towards)
    assert held < 1.15 * RATE
    assert free > 3 * held


def check(node: Node, attached: Attachment) -> Answer:
    conf = {**attached.conf, "prevResult": attached.result}
    return node.call("CHECK", conf, attached.pod.name, attached.pod)


LIMITED = "expected a limit of 50000000 bit/s by tbf, found"
TAMPERED = {
    "tap free": ("tc, cls_bpf", "tc qdisc del dev vlt{digest} root", LIMITED),
    "other rate": (
        "tc, cls_bpf",
        "tc qdisc change dev eth0 root tbf rate 1mbit burst 9k limit 9k",
        f"eth0: {LIMITED} 1000000",
    ),
    "port free": ("veth", "tc qdisc del dev vlh{digest} root", f"{LIMITED} noqueue"),
    "past the ifb": ("veth", "tc qdisc del dev vlh{digest} clsact", "expected a redirect to vli"),
    "macvtap free": ("macvtap", "tc qdisc del dev eth0 root", f"eth0: {LIMITED} "),
    "past a macvtap's ifb": (
        "macvtap",
        f"tc filter del dev eth0 ingress prio {redirect.PRIORITY + 1}",
        "expected a redirect to vli",
    ),
    "no ifb": ("veth", "ip link del vli{digest}", "expected in the host's namespace"),
}


@pytest.mark.parametrize(("way", "command", "said"), TAMPERED.values(), ids=TAMPERED)
def test_check_sees_what_was_changed(node: Node, way: str, command: str, said: str) -> None:
    topology, keys = WAYS[way]
    with topology(node, **keys, bandwidth=LIMIT) as attached:
        attached.add()
        check(node, attached).expect()
        command = command.format(digest=AttachmentKey(attached.pod.name, "eth0").digest)
        node.run(command.split(), None if way in IFB else attached.pod)
        answer = check(node, attached)
        assert answer.code == 104
        assert said in answer.out["msg"]


def root(node: Node, pod: Path) -> list[tuple[str, str]]:
    """(kind, handle) of eth0's root qdisc; empty if it has none."""
    shown = node.run("tc -json qdisc show dev eth0 root".split(), pod).stdout
    return [(qdisc["kind"], qdisc["handle"]) for qdisc in json.loads(shown)]


@pytest.mark.parametrize("told", [True, False])
def test_a_foreign_interface_has_its_root_back(node: Node, told: bool) -> None:
    with chained(node, bandwidth=LIMIT) as attached:
        before = root(node, attached.pod)
        attached.add()
        assert [kind for kind, _ in root(node, attached.pod)] == ["tbf"]
        if not told:
            forget(node, attached)
        attached.delete()
        assert root(node, attached.pod) == before


def forget(node: Node, attached: Attachment) -> None:
    """Make the next DEL one without a record, whose configuration has no bandwidth."""
    for record in node.run_dir.glob("state/*"):
        record.unlink()
    del attached.conf["bandwidth"]


@pytest.mark.parametrize("qdisc", ["htb", "tbf rate 9mbit burst 9k limit 9k"])
def test_somebody_elses_root_is_refused_and_left(node: Node, qdisc: str) -> None:
    with chained(node, bandwidth=LIMIT) as attached:
        node.run(f"tc qdisc add dev eth0 root handle 1: {qdisc}".split(), attached.pod)
        answer = node.call("ADD", attached.conf, attached.pod.name, attached.pod)
        assert answer.code == 7
        assert "bandwidth: eth0 has a root qdisc already" in answer.out["msg"]
        attached.delete()
        assert root(node, attached.pod) == [(qdisc.split()[0], "1:")]
        assert links(node, attached.pod) == {"lo", "eth0"}


def test_a_root_that_somebody_put_in_our_place_stays(node: Node) -> None:
    with chained(node, bandwidth=LIMIT) as attached:
        attached.add()
        node.run("tc qdisc replace dev eth0 root handle 1: htb".split(), attached.pod)
        attached.delete()
        assert root(node, attached.pod) == [("htb", "1:")]


@pytest.mark.parametrize("way", IFB)
def test_a_del_that_knows_nothing_finds_the_ifb(node: Node, way: str) -> None:
    topology, keys = WAYS[way]
    with topology(node, **keys, bandwidth=LIMIT) as attached:
        before = node.contents()
        attached.add()
        made = {name[:8] for name in node.contents() - before if name.startswith("link")}
        assert made == {"link vli", "link vlh" if way == "veth" else "link vlt"}
        forget(node, attached)
        attached.delete()
        assert node.contents() == before


MACVTAPS = {"macvtap": {"lo"}, "macvtap chained": {"lo", "eth0"}}


def links(node: Node, pod: Path) -> set[str]:
    return {link["ifname"] for link in json.loads(node.run(["ip", "-json", "link"], pod).stdout)}


@pytest.mark.parametrize(("way", "without"), MACVTAPS.items())
@pytest.mark.parametrize("lost", [False, True])
def test_a_macvtap_takes_its_ifb_along(node: Node, way: str, without: set[str], lost: bool) -> None:
    topology, keys = WAYS[way]
    with topology(node, **keys, bandwidth=LIMIT) as attached:
        attached.add()
        ifb = AttachmentKey(attached.pod.name, "eth0").ifb_link
        assert links(node, attached.pod) == {*without, attached.macvtap, ifb}
        if lost:
            node.run(["ip", "link", "del", attached.macvtap], attached.pod)
        else:
            forget(node, attached)
        attached.delete()
        assert links(node, attached.pod) == without


@pytest.mark.parametrize("way", MACVTAPS)
def test_the_namespace_of_a_limited_macvtap_is_silent(node: Node, way: str) -> None:
    topology, keys = WAYS[way]
    args = {"cni": ADDRESSES}
    with topology(node, **keys, v6=True, args=args, bandwidth=LIMIT) as attached:
        attached.add()
        port = attached.port()
        assert answers(port) == set()
        guest = attached.guest()
        assert answers(port) == set()
        assert [guest.receive() for _ in PROBES] == [bytes(probe) for probe in PROBES.values()]


@pytest.mark.parametrize("way", ["tc, cls_bpf", "tc chained, cls_bpf", *IFB, *MACVTAPS])
def test_a_burst_that_no_frame_passes_is_refused(node: Node, way: str) -> None:
    topology, keys = WAYS[way]
    with topology(node, **keys, bandwidth=LIMIT | {"egressBurst": 9000 * 8}) as attached:
        before = node.contents()
        answer = node.call("ADD", attached.conf, attached.pod.name, attached.pod)
        assert answer.code == 7
        assert "bandwidth.egressBurst: 72000 bits are less than a frame" in answer.out["msg"]
        assert node.contents() == before


def test_status_tells_whether_the_kernel_can_limit(node: Node) -> None:
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "vmlink", "bandwidth": LIMIT}
    node.call("STATUS", {**conf, "linux": {"bridge": "br0"}}).expect()
