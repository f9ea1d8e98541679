"""Each engine passes frames on byte for byte in both directions; nothing else is heard."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6MLReport2, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, LLC, SNAP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.packet import Raw

from bench.testbed.node import Node
from cni.kernel import redirect
from tests.netns.nslib import present
from tests.netns.wirelib import (
    MTU,
    POD4,
    POD6,
    POD_MAC,
    TOPOLOGIES,
    Guest,
    Port,
    bridged,
    chained,
)

SRC, DST = "02:00:00:00:0f:01", POD_MAC
_FLOW = {"src": "10.77.0.99", "dst": POD4}
_FLOW6 = {"src": "fd77::99", "dst": POD6}
_ETHER = Ether(src=SRC, dst=DST)
_EVERYONE = Ether(src=SRC, dst="ff:ff:ff:ff:ff:ff")
_UDP = IP(**_FLOW) / UDP(sport=7, dport=9) / Raw(b"datagram")

ARP_REQUEST = _EVERYONE / ARP(hwsrc=SRC, psrc="10.77.0.99", pdst=POD4)
PING = _ETHER / IP(**_FLOW) / ICMP(id=1) / Raw(b"ping")
SYN = _ETHER / IP(**_FLOW) / TCP(sport=5, dport=6, flags="S")
SOLICITATION = (
    Ether(src=SRC, dst="33:33:ff:00:00:0a")
    / IPv6(src="fd77::99", dst="ff02::1:ff00:a")
    / ICMPv6ND_NS(tgt=POD6)
    / ICMPv6NDOptSrcLLAddr(lladdr=SRC)
)
PROBES = {"arp": ARP_REQUEST, "ping": PING, "syn": SYN, "solicitation": SOLICITATION}

FROM_GUEST = bytes(Ether(src=POD_MAC, dst=SRC, type=0x88B5) / Raw(b"the guest"))
ADDRESSES = {"ips": [POD4, POD6]}

FRAMES = PROBES | {
    "udp": _ETHER / _UDP,
    "udp without checksum": _ETHER / IP(**_FLOW) / UDP(chksum=0) / Raw(b"x"),
    "wrong checksum": _ETHER / IP(**_FLOW) / UDP(chksum=0xBAD) / Raw(b"x"),
    "fragment": _ETHER / IP(**_FLOW, flags="MF", frag=100) / Raw(b"f" * 64),
    "tcp6": _ETHER / IPv6(**_FLOW6) / TCP(flags="PA") / Raw(b"bytes"),
    "multicast": Ether(src=SRC, dst="01:00:5e:01:02:03") / IP(dst="239.1.2.3") / UDP() / Raw(b"m"),
    "multicast6": Ether(src=SRC, dst="33:33:00:01:00:02") / IPv6(dst="ff05::1:2") / UDP(),
    "broadcast": _EVERYONE / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67),
    "strange destination": Ether(src=SRC, dst="02:00:00:00:77:77") / _UDP,
    "802.1Q": _ETHER / Dot1Q(vlan=42, prio=5) / _UDP,
    "priority tag": _ETHER / Dot1Q(vlan=0, prio=7) / _UDP,
    "QinQ": _ETHER / Dot1AD(vlan=100) / Dot1Q(vlan=42) / _UDP,
    "three tags": _ETHER / Dot1AD(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / _UDP,
    "unknown type": Ether(src=SRC, dst=DST, type=0x88B5) / Raw(bytes(range(256))),
    "802.3 SNAP": Dot3(src=SRC, dst=DST) / LLC() / SNAP(code=0x2000) / Raw(b"not ethernet II"),
    "smallest": Ether(src=SRC, dst=DST, type=0x88B5),
    "minimal": Ether(src=SRC, dst=DST, type=0x88B5) / Raw(bytes(46)),
    "largest": _ETHER / IP(**_FLOW) / UDP() / Raw(b"L" * (MTU - 28)),
    "largest with tag": _ETHER / Dot1Q(vlan=42) / IP(**_FLOW) / UDP() / Raw(b"L" * (MTU - 28)),
}


@pytest.fixture(scope="module", params=redirect.ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if reason := redirect.supported()[name]:
        pytest.skip(reason)
    return name


@pytest.fixture(scope="module", params=TOPOLOGIES)
def link(request: pytest.FixtureRequest, node: Node, engine: str) -> Iterator[tuple[Port, Guest]]:
    """(port, guest) of one attachment, used for all frames."""
    with TOPOLOGIES[request.param](node, redirect=engine) as attached:
        attached.add()
        yield attached.port(), attached.guest()


@pytest.mark.parametrize("name", FRAMES)
def test_every_frame_crosses_unchanged(link: tuple[Port, Guest], name: str) -> None:
    crosses_unchanged(*link, name)


def crosses_unchanged(port: Port, guest: Guest, name: str) -> None:
    frame = bytes(FRAMES[name])
    port.send(frame)
    _, header, received = present(guest.receive_with_header())
    assert received == frame
    assert header == bytes(10)
    # From another MAC, else the bridge would learn that the outside's MAC is on this side.
    answer = frame[:6] + bytes.fromhex("02000000aa01") + frame[12:]
    guest.send(answer)
    assert port.receive() == answer


def test_sizes_of_the_jumbo_frames() -> None:
    assert [len(FRAMES[f"largest{x}"]) for x in ("", " with tag")] == [MTU + 14, MTU + 18]


def test_link_local_control_frames_cross_a_chained_interface(node: Node, engine: str) -> None:
    with chained(node, redirect=engine) as attached:
        attached.add()
        port, guest = attached.port(), attached.guest()
        lldp = bytes(Ether(src=SRC, dst="01:80:c2:00:00:0e", type=0x88CC) / Raw(b"\2\7\4"))
        port.send(lldp)
        assert guest.receive() == lldp
        guest.send(lldp)
        assert port.receive() == lldp


def heard(port: Port, seconds: float) -> list[bytes]:
    """All frames until none comes for `seconds`, except MLD reports.

    The kernel sends one for each IPv6 address that an interface gets; that cannot be turned off.
    """
    frames = []
    while frame := port.receive(seconds):
        if frame[12:14] != b"\x86\xdd" or ICMPv6MLReport2 not in Ether(frame):
            frames.append(frame)
    return frames


def answers(port: Port) -> set[str]:
    """The names of the probes that get an answer."""
    found = set()
    for name, probe in PROBES.items():
        port.send(bytes(probe))
        if heard(port, 0.1):
            found.add(name)
    return found


def test_the_namespace_answers_only_while_it_is_not_the_guests(node: Node, engine: str) -> None:
    with chained(node, v6=True, redirect=engine) as attached:
        port = attached.port()
        before = answers(port)
        attached.add()
        guest = attached.guest()
        during = answers(port)
        received = [guest.receive() for _ in PROBES]
        guest.send(FROM_GUEST)
        assert port.receive() == FROM_GUEST
        attached.delete()
        assert before == answers(port) == set(PROBES)
        assert during == set()
        assert received == [bytes(p) for p in PROBES.values()]


def test_nobody_answers_for_a_pod_on_a_bridge(node: Node, engine: str) -> None:
    with bridged(node, v6=True, redirect=engine, mac=POD_MAC, args={"cni": ADDRESSES}) as attached:
        result = attached.add()
        assert {ip["address"] for ip in result["ips"]} == {POD4 + "/24", POD6 + "/64"}
        port, guest = attached.port(), attached.guest()
        assert answers(port) == set()
        assert [guest.receive() for _ in PROBES] == [bytes(p) for p in PROBES.values()]
        guest.send(FROM_GUEST)
        assert heard(port, 0.1) == [FROM_GUEST]


@pytest.mark.parametrize("v6", [False, True], ids=["IPv4", "dual stack"])
def test_the_namespace_says_nothing_by_itself(node: Node, engine: str, v6: bool) -> None:
    with bridged(node, v6=v6, redirect=engine) as attached:
        port = attached.port()
        attached.add()
        guest = attached.guest()
        assert heard(port, 1.1) == []
        assert guest.receive(0) is None
        guest.send(FROM_GUEST)
        assert port.receive() == FROM_GUEST


def test_a_vlan_is_the_switchs_affair(node: Node, engine: str) -> None:
    node.run("ip link add filters type bridge".split())
    refused = node.run("ip link set filters type bridge vlan_filtering 1".split(), check=False)
    node.run("ip link del filters".split())
    if refused.returncode:
        pytest.skip(f"no VLAN filtering in this kernel's bridge: {refused.stderr.strip()}")
    with bridged(node, redirect=engine, linux={"vlan": 42}) as attached:
        attached.add()
        for vid in ("42", "43"):
            node.run(["bridge", "vlan", "add", "dev", f"p-{attached.pod.name}", "vid", vid])
        port, guest = attached.port(), attached.guest()
        tagged, plain = bytes(_ETHER / Dot1Q(vlan=42) / _UDP), bytes(_ETHER / _UDP)
        for stranger in (_ETHER / PING[IP], _ETHER / Dot1Q(vlan=43) / PING[IP]):
            port.send(bytes(stranger))
        port.send(tagged)
        assert guest.receive() == plain
        assert guest.receive(0) is None
        guest.send(plain)
        assert port.receive() == tagged
