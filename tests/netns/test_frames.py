"""Frames cross an attachment byte for byte, both ways, by every engine; nothing else is heard."""

import struct

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, LLC, SNAP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.packet import Raw
from wirelib import MTU, POD4, POD6, POD_MAC, TOPOLOGIES, bridged, chained

from cni import redirect

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

FRAMES = PROBES | {
    "udp": _ETHER / _UDP,
    "udp without checksum": _ETHER / IP(**_FLOW) / UDP(chksum=0) / Raw(b"x"),
    "wrong checksum": _ETHER / IP(**_FLOW, chksum=0xBAD) / UDP(chksum=0xBAD) / Raw(b"x"),
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
def engine(request):
    if reason := redirect.supported()[request.param]:
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="module", params=TOPOLOGIES)
def link(request, node, engine):
    """(port, guest) of one attachment for all the frames."""
    with TOPOLOGIES[request.param](node, redirect=engine) as attached:
        attached.add()
        yield attached.port(), attached.guest()


@pytest.mark.parametrize("name", FRAMES)
def test_every_frame_crosses_unchanged(link, name):
    port, guest = link
    frame = bytes(FRAMES[name])
    port.send(frame)
    _, header, received = guest.receive_with_header()
    assert received == frame
    assert header == bytes(10)
    answer = frame[6:12] + frame[6:12] + frame[12:]
    answer = frame[:6] + bytes.fromhex("02000000aa01") + frame[12:]
    guest.send(answer)
    assert port.receive() == answer


def test_sizes_of_the_jumbo_frames():
    assert [len(FRAMES[f"largest{x}"]) for x in ("", " with tag")] == [MTU + 14, MTU + 18]


def test_link_local_control_frames_cross_a_chained_interface(node, engine):
    with chained(node, redirect=engine) as attached:
        attached.add()
        port, guest = attached.port(), attached.guest()
        lldp = bytes(Ether(src=SRC, dst="01:80:c2:00:00:0e", type=0x88CC) / Raw(b"\2\7\4"))
        port.send(lldp)
        assert guest.receive() == lldp
        guest.send(lldp)
        assert port.receive() == lldp


def answered(port, probe):
    """Who answers it says so before it can send back what we send next."""
    port.send(bytes(probe))
    return port.receive(0.3)


def test_the_namespace_answers_only_while_it_is_not_the_guests(node, engine):
    with chained(node, redirect=engine) as attached:
        port = attached.port()
        before = {name: answered(port, probe) is not None for name, probe in PROBES.items()}
        attached.add()
        guest = attached.guest()
        for name, probe in PROBES.items():
            port.send(bytes(probe))
            assert guest.receive() == bytes(probe), name
        marker = bytes(Ether(src=DST, dst=SRC, type=0x88B5) / Raw(b"the guest"))
        guest.send(marker)
        assert port.receive() == marker
        assert port.receive(0.2) is None
        attached.delete()
        after = {name: answered(port, probe) is not None for name, probe in PROBES.items()}
    assert before == after == dict.fromkeys(PROBES, True)


def test_nobody_answers_for_a_pod_on_a_bridge(node, engine):
    with bridged(node, redirect=engine, mac=POD_MAC) as attached:
        result = attached.add()
        port, guest = attached.port(), attached.guest()
        v4, v6 = (ip["address"].partition("/")[0] for ip in result["ips"])
        arp, ping, syn, _ = (x.copy() for x in PROBES.values())
        arp.pdst = ping[IP].dst = syn[IP].dst = v4
        tail = struct.pack("!H", int(v6.rpartition(":")[2], 16))
        ns = SOLICITATION.copy()
        ns.tgt, ns.dst = v6, "33:33:ff:00:" + tail.hex(":")
        ns[IPv6].dst = "ff02::1:ff00:" + tail.hex()
        for probe in (arp, ping, syn, ns):
            port.send(bytes(probe))
            assert guest.receive() == bytes(probe)
        assert port.receive(0.3) is None


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_nothing_is_said_by_the_namespace(node, engine, topology):
    with TOPOLOGIES[topology](node, redirect=engine) as attached:
        port = attached.port()
        attached.add()
        guest = attached.guest()
        assert port.receive(1.0) is None
        assert guest.receive(0.1) is None
        marker = bytes(Ether(src=DST, dst=SRC, type=0x88B5) / Raw(b"the guest"))
        guest.send(marker)
        assert port.receive() == marker


@pytest.mark.parametrize("segmenting", [True, False], ids=["TSO off", "TSO on"])
def test_large_segments_arrive_whole_only_if_the_vmm_takes_them(node, engine, segmenting):
    pass


def test_a_vlan_is_the_switchs_affair(node, engine):
    with bridged(node, redirect=engine, linux={"vlan": 42}) as attached:
        attached.add()
        node.run("bridge vlan add dev port vid 42".split())
        node.run("bridge vlan add dev port vid 43".split())
        port, guest = attached.port(), attached.guest()
        plain = bytes(_ETHER / _UDP)
        other, tagged = (bytes(_ETHER / Dot1Q(vlan=vid) / _UDP) for vid in (43, 42))
        for frame in (plain, other, tagged):
            port.send(frame)
        assert guest.receive() == plain
        assert guest.receive(0.2) is None
        guest.send(plain)
        assert port.receive() == tagged
