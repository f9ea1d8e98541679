"""Frames cross ports of a Linux bridge and of Open vSwitch; nothing else is heard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from bench.testbed import switch
from bench.testbed.node import Node
from bench.testbed.switch import Datapath
from tests.netns.test_frames import (
    ADDRESSES,
    FRAMES,
    FROM_GUEST,
    PROBES,
    SRC,
    answers,
    crosses_unchanged,
    heard,
)
from tests.netns.wirelib import (
    POD4,
    POD6,
    POD_MAC,
    Attachment,
    Guest,
    Port,
    Topology,
    bridged,
    switched,
)

FORMS: dict[str, Topology] = {
    "tap, linux": partial(bridged, mode="tap"),
    "tap, ovs": partial(switched, mode="tap"),
    "tc, ovs": partial(switched, mode="tc"),
}
EVERYONE = "ff:ff:ff:ff:ff:ff"


@pytest.fixture(scope="module")
def node(datapath: Datapath) -> Iterator[Node]:
    with Node("" if switch.missing() else "ovs", datapath) as made:
        made.start()
        yield made


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> Topology:
    if "ovs" in request.param and (reason := switch.missing()):
        pytest.skip(reason)
    return FORMS[request.param]


@pytest.fixture(scope="module", params=["tap", "tc"])
def on_ovs(request: pytest.FixtureRequest) -> Topology:
    if reason := switch.missing():
        pytest.skip(reason)
    return FORMS[f"{request.param}, ovs"]


@pytest.fixture(scope="module")
def link(form: Topology, node: Node) -> Iterator[tuple[Port, Guest]]:
    """(port, guest) of one attachment, used for all frames."""
    with form(node) as attached:
        attached.add()
        yield attached.port(), attached.guest()


@pytest.mark.parametrize("name", FRAMES)
def test_every_frame_crosses_unchanged(link: tuple[Port, Guest], name: str) -> None:
    crosses_unchanged(*link, name)


def test_link_local_control_frames_end_at_the_switch(link: tuple[Port, Guest]) -> None:
    """As IEEE 802.1D says; group_fwd_mask of a bridge or forward-bpdu of OVS could change that."""
    port, guest = link
    lldp = Ether(dst="01:80:c2:00:00:0e", type=0x88CC) / Raw(b"\2\7\4")
    last = bytes(FRAMES["unknown type"])
    lldp.src = SRC
    for frame in (bytes(lldp), last):
        port.send(frame)
    assert guest.receive() == last
    lldp.src = POD_MAC
    for frame in (bytes(lldp), FROM_GUEST):
        guest.send(frame)
    assert port.receive() == FROM_GUEST


def test_nobody_answers_for_the_guest(node: Node, form: Topology) -> None:
    with form(node, v6=True, mac=POD_MAC, args={"cni": ADDRESSES}) as attached:
        result = attached.add()
        assert {ip["address"] for ip in result["ips"]} == {POD4 + "/24", POD6 + "/64"}
        port, guest = attached.port(), attached.guest()
        assert answers(port) == set()
        assert [guest.receive() for _ in PROBES] == [bytes(p) for p in PROBES.values()]
        guest.send(FROM_GUEST)
        assert heard(port, 0.1) == [FROM_GUEST]


def test_nobody_says_anything_unasked(node: Node, form: Topology) -> None:
    with form(node, v6=True) as attached:
        port = attached.port()
        attached.add()
        guest = attached.guest()
        assert heard(port, 1.1) == []
        assert guest.receive(0) is None


NODE4 = "10.66.0.1"
TO_THE_NODE = {
    "arp": Ether(dst=EVERYONE) / ARP(hwsrc=POD_MAC, psrc=POD4, pdst=NODE4),
    "broadcast ping": Ether(dst=EVERYONE) / IP(src=POD4, dst=NODE4) / ICMP(id=1),
    "ping": Ether(dst="port") / IP(src=POD4, dst=NODE4) / ICMP(id=1),
}


@pytest.fixture
def elsewhere(node: Node) -> Iterator[None]:
    """The node has an address outside of the pod's network."""
    node.run(["ip", "address", "add", NODE4, "dev", "lo"])
    yield
    node.run(["ip", "address", "del", NODE4, "dev", "lo"])


@pytest.mark.parametrize("name", TO_THE_NODE)
def test_what_a_guest_sends_is_the_switchs_alone(
    node: Node, elsewhere: None, on_ovs: Topology, name: str
) -> None:
    """A userspace datapath gets copies of frames; the node's own stack must not take them, too."""
    with on_ovs(node, mac=POD_MAC, args={"cni": {"ips": [POD4]}}) as attached:
        attached.add()
        port, guest, before = attached.port(), attached.guest(), pings(node)
        frame = TO_THE_NODE[name].copy()
        frame.src = POD_MAC
        if frame.dst == "port":
            frame.dst = host_mac(attached)
        guest.send(bytes(frame))
        assert port.receive() == bytes(frame)
        assert guest.receive(0.1) is None
        assert pings(node) == before


def host_mac(attached: Attachment) -> str:
    """The MAC of the link that is the switch's port."""
    link = attached.tap if attached.conf["mode"] == "tap" else attached.host_link
    told = attached.node.run(["ip", "-json", "link", "show", "dev", link]).stdout
    mac: str = json.loads(told)[0]["address"]
    return mac


def pings(node: Node) -> int:
    """How many echo requests the node's own stack has received."""
    told = node.run("nstat --json -asz IcmpInEchos".split()).stdout
    count: int = json.loads(told)["kernel"]["IcmpInEchos"]
    return count


def packet(source: str, destination: str, *vlans: int) -> bytes:
    made = Ether(src=source, dst=destination)
    for vlan in vlans:
        made /= Dot1Q(vlan=vlan)
    return bytes(made / IP(src="10.77.0.98", dst="10.77.0.99") / UDP() / Raw(b"x"))


Tags = tuple[int, ...]  # of a frame, the outer one first

# For each: the key `ovs` of the configuration; the tags of frames that pass, on the guest's side
# and on the wire; tags that do not pass from the wire; tags that do not pass from the guest.
VLANS: dict[str, tuple[dict[str, Any], dict[Tags, Tags], Sequence[Tags], Sequence[Tags]]] = {
    "access": ({"vlan": 42}, {(): (42,)}, [(), (43,)], [(42,), (43,)]),
    "trunk": (
        {"trunk": [{"minID": 20, "maxID": 22}, {"id": 30}]},
        {(20,): (20,), (22,): (22,), (30,): (30,)},
        [(), (19,), (23,)],
        [(), (19,), (23,)],
    ),
    "trunk with a native VLAN": (
        {"vlan": 7, "trunk": [{"id": 20}]},
        {(): (7,), (20,): (20,)},
        [(), (21,)],
        [(21,)],
    ),
}


@pytest.mark.parametrize("name", VLANS)
def test_vlans(node: Node, on_ovs: Topology, name: str) -> None:
    ovs, crossing, not_in, not_out = VLANS[name]
    with on_ovs(node, ovs=ovs) as attached:
        attached.add()
        port, guest = attached.port(), attached.guest()
        for tags in (*not_in, *crossing.values()):
            port.send(packet(SRC, POD_MAC, *tags))
        assert [guest.receive() for _ in crossing] == [
            packet(SRC, POD_MAC, *tags) for tags in crossing
        ]
        for tags in (*not_out, *crossing):
            guest.send(packet(POD_MAC, SRC, *tags))
        assert [port.receive() for _ in crossing] == [
            packet(POD_MAC, SRC, *tags) for tags in crossing.values()
        ]
        assert (guest.receive(0), port.receive(0.05)) == (None, None)
