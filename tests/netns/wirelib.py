"""Attachments whose two ends a test holds: a wire on the switch's side, and the guest's tap."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import ICMPv6ND_NA
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw
from scapy.utils import checksum

from bench.testbed.node import Node
from bench.testbed.slowness import SLOWNESS
from cni.kernel.macvtap import open_macvtap
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from cni.kernel.tuntap import open_tap
from tests.netns.nslib import present

MTU = 9000
POD_MAC = "02:00:00:00:00:0a"
POD4, POD6 = "10.77.0.10", "fd77::a"
NO_OFFLOAD = bytes(10)  # struct virtio_net_hdr of linux/virtio_net.h
GSO = struct.Struct("=BBHHHH")  # the same header, field by field
NEEDS_CSUM, GSO_TCPV4 = 1, 1
_SOL_PACKET, _AUXDATA, _VNET_HDR, _IGNORE_OUTGOING = 263, 8, 15, 23
_VLAN_VALID, _VLAN_TPID_VALID = 0x10, 0x40
IFF_LOWER_UP = 0x10000
PATIENCE = 3.0 * SLOWNESS  # seconds


class Port:
    """A packet socket: frames as they are on the wire, except those that the host itself sends."""

    def __init__(self, namespace: Namespace, link: str, vnet: bool = False) -> None:
        with namespace.entered():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self.socket.setsockopt(_SOL_PACKET, _AUXDATA, 1)
            self.socket.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
            self.socket.setsockopt(_SOL_PACKET, _VNET_HDR, int(vnet))
            self.socket.bind((link, 3))

    def send(self, frame: bytes) -> None:
        self.socket.send(frame)

    def receive(self, seconds: float = PATIENCE) -> bytes | None:
        """The next frame but announcements of addresses, None if none comes in time."""
        while (frame := self.receive_any(seconds)) and announces(frame):
            pass
        return frame

    def receive_any(self, seconds: float = PATIENCE) -> bytes | None:
        """The next frame, None if none comes in time."""
        self.socket.settimeout(seconds)
        try:
            data, auxiliary, *_ = self.socket.recvmsg(1 << 16, 256)
        except TimeoutError:
            return None
        for level, kind, raw in auxiliary:
            if (level, kind) == (_SOL_PACKET, _AUXDATA):
                status, *_, tci, tpid = struct.unpack("=IIIHHHH", raw[:20])
                if status & _VLAN_VALID:
                    tpid = tpid if status & _VLAN_TPID_VALID else 0x8100
                    # The kernel strips the outer tag and passes it on as auxiliary data.
                    return data[:12] + struct.pack("!HH", tpid, tci) + data[12:]
        return data

    def close(self) -> None:
        self.socket.close()


def announces(frame: bytes) -> bool:
    """Whether it is a gratuitous ARP or an unsolicited neighbour advertisement."""
    packet = Ether(frame)
    if ARP in packet:
        return bool(packet[ARP].psrc == packet[ARP].pdst)
    return ICMPv6ND_NA in packet and packet[ICMPv6ND_NA].S == 0


class Guest:
    """A VMM's end of a tap: a descriptor for each queue."""

    def __init__(self, fds: list[int]) -> None:
        self.fds = fds

    def send(self, frame: bytes, header: bytes = NO_OFFLOAD) -> None:
        os.write(self.fds[0], header + frame)

    def receive(self, seconds: float = PATIENCE) -> bytes | None:
        """The next frame from any queue, None if none comes in time."""
        found = self.receive_with_header(seconds)
        return None if found is None else found[2]

    def receive_with_header(self, seconds: float = PATIENCE) -> tuple[int, bytes, bytes] | None:
        """(queue, virtio_net_hdr, frame), None if no frame comes in time."""
        ready = select.select(self.fds, [], [], seconds)[0]
        if not ready:
            return None
        data = os.read(ready[0], 1 << 17)
        return self.fds.index(ready[0]), data[:10], data[10:]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


Opened = TypeVar("Opened", Port, Guest)


class Attachment:
    """A pod attached by vmlink.

    `port` opens the switch's side, `guest` the guest's; the attachment closes both.
    """

    def __init__(self, node: Node, pod: Path, outside: Path, conf: dict[str, Any]) -> None:
        self.node, self.pod, self.outside = node, pod, outside
        self.conf = {"cniVersion": "1.1.0", "name": "frames", "type": "vmlink", **conf}
        self.stack = ExitStack()
        self.namespace = self.stack.enter_context(Namespace.open(str(pod)))
        self.result: dict[str, Any] = {}

    def add(self) -> dict[str, Any]:
        self.result = self.node.call("ADD", self.conf, self.pod.name, self.pod).expect()
        return self.result

    def delete(self) -> None:
        self.node.call("DEL", self.conf, self.pod.name, self.pod).expect()

    @property
    def tap(self) -> str:
        return self.named("vlt")

    @property
    def macvtap(self) -> str:
        name: str = self.result["interfaces"][-1]["name"]
        return name

    @property
    def node_path(self) -> str:
        told = self.node.run(self.node.ctl("device", self.pod.name)).stdout
        path: str = json.loads(told)[0]["path"]
        return path

    @property
    def host_link(self) -> str:
        return self.named("vlh")

    def named(self, prefix: str) -> str:
        """The link of the result whose name begins so."""
        names: list[str] = [interface["name"] for interface in self.result["interfaces"]]
        return next(name for name in names if name.startswith(prefix))

    def port(self, link: str = "wire", vnet: bool = False) -> Port:
        with Namespace.open(str(self.outside)) as namespace:
            return self.kept(Port(namespace, link, vnet))

    def guest(self) -> Guest:
        queues, mode = self.conf.get("queues", 1), self.conf.get("mode")
        where = self.node.namespace if mode == "tap" else self.namespace
        with where.entered(), Netlink() as netlink:
            if mode == "macvtap":
                link, fds = self.macvtap, open_macvtap(self.node_path, queues)
            else:
                link, fds = self.tap, open_tap(self.tap, queues)
            opened = self.kept(Guest(fds))
            until = time.monotonic() + PATIENCE
            # The kernel's link watch may delay the carrier by up to 1 s.
            while not present(netlink.link(link)).flags & IFF_LOWER_UP:
                assert time.monotonic() < until, "the tap has no carrier"
                select.select([], [], [], 0.002)
        # And then also the port's state.
        while "state disabled" in self.node.run(["bridge", "link"]).stdout:
            assert time.monotonic() < until, "a port of the bridge is not forwarding"
        return opened

    def kept(self, opened: Opened) -> Opened:
        """Close it together with the attachment."""
        self.stack.callback(opened.close)
        return opened


def _ipam(node: Node, v6: bool) -> dict[str, Any]:
    subnets = ["10.77.0.0/24", "fd77::/64"][: 1 + v6]
    return node.ipam(*subnets, routes=["0.0.0.0/0", "::/0"][: 1 + v6])


@contextmanager
def bridged(node: Node, v6: bool = False, **conf: Any) -> Iterator[Attachment]:
    """A pod on a Linux bridge, whose other port leads to the link `wire` in a second namespace."""
    pod, outside = node.pod(), node.pod()
    bridge, port = f"br-{pod.name}", f"p-{pod.name}"
    linux = {"bridge": bridge, **conf.pop("linux", {})}
    ipam = _ipam(node, v6)
    attached = Attachment(node, pod, outside, {"linux": linux, "ipam": ipam, **conf})
    try:
        # With snooping on, the bridge itself would report its group ff02::6a; the tests want to
        # hear nothing but the attachment.
        kind = ["type", "bridge", "mcast_snooping", "0"]
        node.run(["ip", "link", "add", bridge, "mtu", str(MTU), *kind])
        _quietly_up(node, node.path, bridge)
        _veth(node, node.path, port, outside)
        node.run(["ip", "link", "set", port, "master", bridge])
        yield from _served(attached)
    finally:
        for link in (port, bridge):
            node.run(["ip", "link", "del", link], check=False)
        node.lab.drop(pod)
        node.lab.drop(outside)


@contextmanager
def switched(node: Node, v6: bool = False, port: str = "", **conf: Any) -> Iterator[Attachment]:
    """A pod on a bridge of Open vSwitch, whose other port leads to `wire` in a second namespace.

    `port` sets columns of that other port's row, as in "tag=42 vlan_mode=access".
    """
    assert node.switch
    pod, outside = node.pod(), node.pod()
    bridge, name = f"br-{pod.name}", f"p-{pod.name}"
    ipam = _ipam(node, v6)
    ovs = {"bridge": bridge, **conf.pop("ovs", {})}
    attached = Attachment(node, pod, outside, {"ovs": ovs, "mtu": MTU, "ipam": ipam, **conf})
    try:
        node.switch.add_bridge(bridge)
        _veth(node, node.path, name, outside)
        node.switch.vsctl("add-port", bridge, name, *port.split())
        yield from _served(attached)
    finally:
        node.switch.vsctl("del-br", bridge)
        node.run(["ip", "link", "del", name], check=False)
        node.lab.drop(pod)
        node.lab.drop(outside)


@contextmanager
def mastered(node: Node, v6: bool = False, **conf: Any) -> Iterator[Attachment]:
    """A pod's macvtap on a NIC of the node; the cable's far end is `wire` in a second namespace."""
    pod, outside = node.pod(), node.pod()
    nic = f"nic-{pod.name}"
    ipam = _ipam(node, v6)
    conf = {"mode": "macvtap", "master": nic, "ipam": ipam, **conf}
    attached = Attachment(node, pod, outside, conf)
    try:
        _veth(node, node.path, nic, outside)
        yield from _served(attached)
    finally:
        node.run(["ip", "link", "del", nic], check=False)
        node.lab.drop(pod)
        node.lab.drop(outside)


@contextmanager
def chained(node: Node, v6: bool = False, **conf: Any) -> Iterator[Attachment]:
    """A pod whose eth0 is a foreign veth; its far end is `wire` in a second namespace."""
    pod, outside = node.pod(), node.pod()
    addresses = [f"{POD4}/24", f"{POD6}/64"][: 1 + v6]
    previous = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mac": POD_MAC, "sandbox": str(pod)}],
        "ips": [{"address": a, "interface": 0} for a in addresses],
    }
    attached = Attachment(node, pod, outside, {"prevResult": previous, **conf})
    try:
        _veth(node, pod, "eth0", outside)
        node.run(["ip", "link", "set", "eth0", "address", POD_MAC], pod)
        for address in addresses:
            node.run(["ip", "address", "add", address, "dev", "eth0", "nodad"], pod)
        yield from _served(attached)
    finally:
        node.lab.drop(pod)
        node.lab.drop(outside)


def unfinished(
    ether: Ether, flow: dict[str, str], payload: bytes, segment: int
) -> tuple[bytes, bytes]:
    """(virtio_net_hdr, frame) as a sender with offloads hands it to the NIC.

    The NIC is to cut it into segments. Instead of a checksum it has the sum of the pseudo-header.
    """
    pseudo = socket.inet_aton(flow["src"]) + socket.inet_aton(flow["dst"])
    pseudo += struct.pack("!HH", socket.IPPROTO_TCP, len(payload) + 20)
    tcp = TCP(flags="A", chksum=~checksum(pseudo) & 0xFFFF)
    header = GSO.pack(NEEDS_CSUM, GSO_TCPV4, 54, segment, 34, 16)
    return header, bytes(ether / IP(**flow) / tcp / Raw(payload))


def rebuilt(frame: bytes) -> bytes:
    """The IP packet of a frame, with its checksums calculated anew by scapy."""
    packet = IP(frame[14:])
    del packet.chksum, packet[TCP].chksum
    return bytes(packet)


Topology = Callable[..., AbstractContextManager[Attachment]]
TOPOLOGIES: dict[str, Topology] = {"bridge": bridged, "chained": chained}


def _served(attached: Attachment) -> Iterator[Attachment]:
    with attached.stack:
        try:
            yield attached
        finally:
            attached.delete()


def _veth(node: Node, where: Path, name: str, outside: Path) -> None:
    peer = f"peer name wire mtu {MTU} netns {outside}"
    node.run(f"ip link add {name} mtu {MTU} type veth {peer}".split(), where)
    _quietly_up(node, where, name)
    _quietly_up(node, outside, "wire")


def _quietly_up(node: Node, where: Path, link: str) -> None:
    # A single command would set the link up first, and the kernel would give it an address.
    for what in (["addrgenmode", "none"], ["up"]):
        node.run(["ip", "link", "set", link, *what], where)
