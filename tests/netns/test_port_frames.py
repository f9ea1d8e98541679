"""Frames cross ports of a Linux bridge and of Open vSwitch, both ways; nothing else is heard."""

import json
from functools import partial

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from bench.testbed import switch
from bench.testbed.node import Node
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
from tests.netns.wirelib import POD4, POD6, POD_MAC, bridged, switched

FORMS = {
    "tap, linux": partial(bridged, mode="tap"),
    "tap, ovs": partial(switched, mode="tap"),
    "tc, ovs": partial(switched, mode="tc"),
}
EVERYONE = "ff:ff:ff:ff:ff:ff"


@pytest.fixture(scope="module")
def node():
    with Node("" if switch.missing() else "ovs") as made:
        made.start()
        yield made


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    if "ovs" in request.param and (reason := switch.missing()):
        pytest.skip(reason)
    return FORMS[request.param]


@pytest.fixture(scope="module", params=["tap", "tc"])
def on_ovs(request):
    if reason := switch.missing():
        pytest.skip(reason)
    return FORMS[f"{request.param}, ovs"]


@pytest.fixture(scope="module")
def link(form, node):
    """(port, guest) of one attachment for all the frames."""
    with form(node) as attached:
        attached.add()
        yield attached.port(), attached.guest()


@pytest.mark.parametrize("name", FRAMES)
def test_every_frame_crosses_unchanged(link, name):
    crosses_unchanged(*link, name)


def test_link_local_control_frames_end_at_the_switch(link):
    """IEEE 802.1D; group_fwd_mask of a Linux bridge, other_config:forward-bpdu of OVS."""
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


def test_nobody_answers_for_the_guest(node, form):
    with form(node, v6=True, mac=POD_MAC, args={"cni": ADDRESSES}) as attached:
        result = attached.add()
        assert {ip["address"] for ip in result["ips"]} == {POD4 + "/24", POD6 + "/64"}
        port, guest = attached.port(), attached.guest()
        assert answers(port) == set()
        assert [guest.receive() for _ in PROBES] == [bytes(p) for p in PROBES.values()]
        guest.send(FROM_GUEST)
        assert heard(port, 0.1) == [FROM_GUEST]


def test_nobody_says_anything_unasked(node, form):
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
def elsewhere(node):
    """An address of the node that is not of the pod's network."""
    node.run(["ip", "address", "add", NODE4, "dev", "lo"])
    yield
    node.run(["ip", "address", "del", NODE4, "dev", "lo"])


@pytest.mark.parametrize("name", TO_THE_NODE)
def test_what_a_guest_sends_is_the_switchs_alone(node, elsewhere, on_ovs, name):
    """The kernel offers the node's own stack what a userspace datapath gets copies of."""
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


def host_mac(attached):
    """Of the link that is the port."""
    link = attached.tap if attached.conf["mode"] == "tap" else attached.host_link
    told = attached.node.run(["ip", "-json", "link", "show", "dev", link]).stdout
    return json.loads(told)[0]["address"]


def pings(node):
    """How many the node's own stack has taken."""
    told = node.run("nstat --json -asz IcmpInEchos".split()).stdout
    return json.loads(told)["kernel"]["IcmpInEchos"]


def packet(source, destination, *vlans):
    made = Ether(src=source, dst=destination)
    for vlan in vlans:
        made /= Dot1Q(vlan=vlan)
    return bytes(made / IP(src="10.77.0.98", dst="10.77.0.99") / UDP() / Raw(b"x"))


# What `ovs` says; the tags of a frame on the guest's side and on the wire; what does not cross,
# from the wire and from the guest.
VLANS = {
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
def test_vlans(node, on_ovs, name):
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
