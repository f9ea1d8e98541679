"""What an attachment makes in the kernel.

The tap has its queues, owner and offloads; links, addresses and routes are as the result says; and
nothing is there that a runtime which scans the namespace could mistake for the guest's interface.
"""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from bench.testbed.node import Node
from cni.kernel.netlink import Busy, NetlinkError
from cni.kernel.tuntap import IFF_MULTI_QUEUE, IFF_VNET_HDR, IFREQ, TUNGETIFF, open_tap
from tests.netns.nslib import present
from tests.netns.wirelib import (
    GSO,
    GSO_TCPV4,
    MTU,
    NO_OFFLOAD,
    POD4,
    POD_MAC,
    TOPOLOGIES,
    Attachment,
    bridged,
    chained,
    rebuilt,
    unfinished,
)

ETHER = Ether(src="02:00:00:00:0f:01", dst=POD_MAC)
TUNSETOFFLOAD, TUN_F_CSUM, TUN_F_TSO4 = 0x400454D0, 1, 2
FLOW = {"src": "10.77.0.99", "dst": POD4}
STRANGER, OWNER, GROUP = 65534, 4711, 4712
OPEN = """
import fcntl, struct, sys
try:
    fcntl.ioctl(0, 0x400454CA, struct.pack("=16sH22x", sys.argv[1].encode(), 0x5002))
except PermissionError as e:
    sys.exit(e.errno)
"""


def flags(fd: int) -> int:
    found: int = IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ.size)))[1]
    return found


def show(node: Node, *command: str, where: Path) -> Any:
    return json.loads(node.run(["ip", "-json", "-details", *command], where).stdout or "[]")


def test_a_tap_with_one_queue_opens_once(node: Node) -> None:
    with chained(node) as attached:
        attached.add()
        fd = attached.guest().fds[0]
        assert flags(fd) & IFF_VNET_HDR
        assert not flags(fd) & IFF_MULTI_QUEUE
        with attached.namespace.entered():
            with pytest.raises(Busy):
                open_tap(attached.tap)
            with pytest.raises(NetlinkError, match="Invalid argument"):
                open_tap(attached.tap, 2)


def test_flows_spread_over_the_queues_of_a_tap(node: Node) -> None:
    with chained(node, queues=2) as attached:
        attached.add()
        port, guest = attached.port(), attached.guest()
        with attached.namespace.entered(), pytest.raises(NetlinkError, match="Invalid argument"):
            open_tap(attached.tap)
        frames = {bytes(ETHER / IP(**FLOW) / UDP(sport=n) / Raw(b"flow")) for n in range(1, 65)}
        for frame in frames:
            port.send(frame)
        received = [present(guest.receive_with_header()) for _ in frames]
        assert {frame for *_, frame in received} == frames
        assert {queue for queue, *_ in received} == {0, 1}


def opens(attached: Attachment, uid: int, gid: int) -> bool:
    """Whether that user may open the tap. root opens /dev/net/tun, so only TUNSETIFF can refuse."""
    command = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "/usr/bin/python3"]
    with attached.namespace.entered(), Path("/dev/net/tun").open("r+b", buffering=0) as tun:
        done = subprocess.run([*command, "-c", OPEN, attached.tap], stdin=tun, check=False)
    assert done.returncode in (0, errno.EPERM)
    return done.returncode == 0


WHO = [(0, 0), (OWNER, 0), (STRANGER, GROUP), (OWNER, GROUP), (STRANGER, STRANGER)]


@pytest.mark.parametrize(
    ("tap", "may"),
    [
        ({}, {(0, 0)}),
        ({"owner": OWNER}, {(0, 0), (OWNER, 0), (OWNER, GROUP)}),
        ({"group": GROUP}, {(0, 0), (STRANGER, GROUP), (OWNER, GROUP)}),
        ({"owner": OWNER, "group": GROUP}, {(0, 0), (OWNER, GROUP)}),
    ],
    ids=["nobody", "owner", "group", "owner and group"],
)
def test_only_the_owner_opens_the_tap(
    node: Node, tap: dict[str, int], may: set[tuple[int, int]]
) -> None:
    with chained(node, tap=tap) as attached:
        attached.add()
        assert {who for who in WHO if opens(attached, *who)} == may


@pytest.mark.parametrize("mode", ["tc", "macvtap"])
@pytest.mark.parametrize("offload", [0, TUN_F_CSUM | TUN_F_TSO4], ids=["without", "with"])
def test_large_segments_arrive_whole_only_if_the_vmm_takes_them(
    node: Node, mode: str, offload: int
) -> None:
    payload = bytes(range(256)) * 12
    with chained(node, mode=mode) as attached:
        attached.add()
        port, guest = attached.port(vnet=True), attached.guest()
        fcntl.ioctl(guest.fds[0], TUNSETOFFLOAD, offload)
        port.send(b"".join(unfinished(ETHER, FLOW, payload, segment=1024)))
        received = [present(guest.receive_with_header()) for _ in range(1 if offload else 3)]
        assert guest.receive(0) is None
    assert b"".join(frame[54:] for *_, frame in received) == payload
    for _, header, frame in received:
        if offload:
            assert GSO.unpack(header)[1:4:2] == (GSO_TCPV4, 1024)
        else:
            assert header == NO_OFFLOAD
            assert frame[14:] == rebuilt(frame)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_helper_links_have_no_addresses_and_make_none(node: Node, topology: str) -> None:
    with TOPOLOGIES[topology](node, v6=True) as attached:
        attached.add()
        attached.guest()
        ours = [(attached.tap, attached.pod)]
        if topology == "bridge":
            ours.append((attached.host_link, node.path))
        for name, where in ours:
            assert show(node, "address", "show", "dev", name, where=where)[0]["addr_info"] == []
            link, *_ = show(node, "link", "show", "dev", name, where=where)
            assert link["inet6_addr_gen_mode"] == "none"
            assert {"UP", "LOWER_UP"} <= set(link["flags"])
            assert link["mtu"] == MTU


NETWORKS: dict[str, tuple[list[str], list[str]]] = {
    "IPv4": (["10.77.0.0/24"], ["0.0.0.0/0"]),
    "IPv6": (["fd77::/64"], ["::/0"]),
    "several ranges": (
        ["10.77.0.0/24", "fd77::/64", "10.78.0.0/16", "fd78::/64"],
        ["0.0.0.0/0", "::/0", "192.0.2.0/24", "2001:db8::/32"],
    ),
    "no routes": (["10.77.0.0/24"], []),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_interface_is_as_the_result_says(node: Node, name: str) -> None:
    subnets, routes = NETWORKS[name]
    with bridged(node, ipam=node.ipam(*subnets, routes=routes), mtu=1400) as attached:
        result = attached.add()
        said = result["interfaces"][0]
        link, *_ = show(node, "address", "show", "dev", "eth0", where=attached.pod)
        assert (link["ifname"], link["address"], link["mtu"]) == ("eth0", said["mac"], said["mtu"])
        assert (said["mtu"], said["sandbox"]) == (1400, str(attached.pod))
        found = [f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"]]
        assert sorted(found) == sorted(ip["address"] for ip in result["ips"])
        assert len(found) == len(subnets)
        assert not any(a.get("tentative") for a in link["addr_info"])
        assert routes_in(node, attached.pod) == expected_routes(result)


def routes_in(node: Node, pod: Path) -> set[tuple[str, str | None]]:
    """(destination, gateway) of each route, except those that the kernel made by itself."""
    found = show(node, "-4", "route", where=pod) + show(node, "-6", "route", where=pod)
    return {(r["dst"], r.get("gateway")) for r in found if r["protocol"] != "kernel"}


def expected_routes(result: dict[str, Any]) -> set[tuple[str, str]]:
    """The result's routes; one without a gateway gets the first of its address family."""
    gateways = {":" in ip["gateway"]: ip["gateway"] for ip in reversed(result["ips"])}
    default = {"0.0.0.0/0": "default", "::/0": "default"}
    return {
        (default.get(r["dst"], r["dst"]), r.get("gw") or gateways[":" in r["dst"]])
        for r in result["routes"]
    }
