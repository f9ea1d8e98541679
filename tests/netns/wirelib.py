"""An attachment with a wire on the switch's side and the guest's end of the tap in hand."""

import json
import os
import select
import socket
import struct
import time
from contextlib import ExitStack, contextmanager

from scapy.layers.inet import IP, TCP
from scapy.packet import Raw
from scapy.utils import checksum

from cni.kernel.macvtap import open_macvtap
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from cni.kernel.tuntap import open_tap

MTU = 9000
POD_MAC = "02:00:00:00:00:0a"
POD4, POD6 = "10.77.0.10", "fd77::a"
NO_OFFLOAD = bytes(10)  # struct virtio_net_hdr of linux/virtio_net.h
GSO = struct.Struct("=BBHHHH")  # the same
NEEDS_CSUM, GSO_TCPV4 = 1, 1
_SOL_PACKET, _AUXDATA, _VNET_HDR, _IGNORE_OUTGOING = 263, 8, 15, 23
_VLAN_VALID, _VLAN_TPID_VALID = 0x10, 0x40
PATIENCE = 3.0


class Port:
    """A packet socket: frames as they are on the wire, without what the host itself sends."""

    def __init__(self, namespace, link, vnet=False):
        with namespace.entered():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self.socket.setsockopt(_SOL_PACKET, _AUXDATA, 1)
            self.socket.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
            self.socket.setsockopt(_SOL_PACKET, _VNET_HDR, int(vnet))
            self.socket.bind((link, 3))

    def send(self, frame):
        self.socket.send(frame)

    def receive(self, seconds=PATIENCE):
        """The next frame, None when there is none in time."""
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
                    # The kernel keeps the outer tag beside the frame.
                    return data[:12] + struct.pack("!HH", tpid, tci) + data[12:]
        return data

    def close(self):
        self.socket.close()


class Guest:
    """What a VMM has of the tap: its queues."""

    def __init__(self, fds):
        self.fds = fds

    def send(self, frame, header=NO_OFFLOAD):
        os.write(self.fds[0], header + frame)

    def receive(self, seconds=PATIENCE):
        """The next frame of any queue, None when there is none in time."""
        found = self.receive_with_header(seconds)
        return found and found[2]

    def receive_with_header(self, seconds=PATIENCE):
        """(queue, virtio_net_hdr, frame), None when there is none in time."""
        ready = select.select(self.fds, [], [], seconds)[0]
        if not ready:
            return None
        data = os.read(ready[0], 1 << 17)
        return self.fds.index(ready[0]), data[:10], data[10:]

    def close(self):
        for fd in self.fds:
            os.close(fd)


class Attachment:
    """A pod attached by vmlink. `port` is on the switch's side, `guest` is opened on demand."""

    def __init__(self, node, pod, outside, conf):
        self.node, self.pod, self.outside = node, pod, outside
        self.conf = {"cniVersion": "1.1.0", "name": "frames", "type": "vmlink", **conf}
        self.stack = ExitStack()
        self.namespace = self.stack.enter_context(Namespace.open(str(pod)))
        self.result = {}

    def add(self):
        self.result = self.node.call("ADD", self.conf, self.pod.name, self.pod).expect()
        return self.result

    def delete(self):
        self.node.call("DEL", self.conf, self.pod.name, self.pod).expect()

    @property
    def tap(self):
        return self._named("vlt")

    @property
    def macvtap(self):
        return self.result["interfaces"][-1]["name"]

    @property
    def node_path(self):
        told = self.node.run(self.node.ctl("device", self.pod.name)).stdout
        return json.loads(told)[0]["path"]

    @property
    def host_link(self):
        return self._named("vlh")

    def _named(self, prefix):
        return next(i["name"] for i in self.result["interfaces"] if i["name"].startswith(prefix))

    def port(self, link="wire", vnet=False):
        with Namespace.open(str(self.outside)) as namespace:
            return self._kept(Port(namespace, link, vnet))

    def guest(self):
        queues, mode = self.conf.get("queues", 1), self.conf.get("mode")
        where = self.node.namespace if mode == "tap" else self.namespace
        with where.entered(), Netlink() as netlink:
            if mode == "macvtap":
                link, fds = self.macvtap, open_macvtap(self.node_path, queues)
            else:
                link, fds = self.tap, open_tap(self.tap, queues)
            opened = self._kept(Guest(fds))
            until = time.monotonic() + PATIENCE
            # IFF_LOWER_UP; link watch may hold an event back for 1 s.
            while not netlink.link(link).flags & 0x10000:
                assert time.monotonic() < until, "the tap has no carrier"
                select.select([], [], [], 0.002)
        while "state disabled" in self.node.run(["bridge", "link"]).stdout:  # so it may a port's
            assert time.monotonic() < until, "a port of the bridge is not forwarding"
        return opened

    def _kept(self, opened):
        self.stack.callback(opened.close)
        return opened


def _ipam(node, v6):
    subnets = ["10.77.0.0/24", "fd77::/64"][: 1 + v6]
    return node.ipam(*subnets, routes=["0.0.0.0/0", "::/0"][: 1 + v6])


@contextmanager
def bridged(node, v6=False, **conf):
    """A pod on a bridge, and the namespace of another of its ports, `wire`."""
    pod, outside = node.pod(), node.pod()
    bridge, port = f"br-{pod.name}", f"p-{pod.name}"
    linux = {"bridge": bridge, **conf.pop("linux", {})}
    ipam = _ipam(node, v6)
    attached = Attachment(node, pod, outside, {"linux": linux, "ipam": ipam, **conf})
    try:
        # A bridge that snoops reports its own group ff02::6a; only the attachment is to be heard.
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
def switched(node, v6=False, port="", **conf):
    """A pod on a bridge of Open vSwitch, and the namespace of another of its ports, `wire`, of
    whose row `port` is (column=value ...).
    """
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
def mastered(node, v6=False, **conf):
    """A pod's macvtap on a NIC of the node, and the namespace of the cable's other end, `wire`."""
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
def chained(node, v6=False, **conf):
    """A pod whose eth0 is one end of somebody's veth, and the namespace of the other, `wire`."""
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


def unfinished(ether, flow, payload, segment):
    """(virtio_net_hdr, frame) as a sender leaves it to the NIC: to be cut into segments, and
    for a checksum the sum of the pseudo-header.
    """
    pseudo = socket.inet_aton(flow["src"]) + socket.inet_aton(flow["dst"])
    pseudo += struct.pack("!HH", socket.IPPROTO_TCP, len(payload) + 20)
    tcp = TCP(flags="A", chksum=~checksum(pseudo) & 0xFFFF)
    header = GSO.pack(NEEDS_CSUM, GSO_TCPV4, 54, segment, 34, 16)
    return header, bytes(ether / IP(**flow) / tcp / Raw(payload))


def rebuilt(frame):
    """The packet with the checksums that scapy calculates."""
    packet = IP(frame[14:])
    del packet.chksum, packet[TCP].chksum
    return bytes(packet)


TOPOLOGIES = {"bridge": bridged, "chained": chained}


def _served(attached):
    with attached.stack:
        try:
            yield attached
        finally:
            attached.delete()


def _veth(node, where, name, outside):
    peer = f"peer name wire mtu {MTU} netns {outside}"
    node.run(f"ip link add {name} mtu {MTU} type veth {peer}".split(), where)
    _quietly_up(node, where, name)
    _quietly_up(node, outside, "wire")


def _quietly_up(node, where, link):
    # In one command the link would go up first, and take an address of its own.
    for what in (["addrgenmode", "none"], ["up"]):
        node.run(["ip", "link", "set", link, *what], where)
