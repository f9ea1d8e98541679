"""A macvtap attached: link, device node and queues as promised; CHECK and STATUS."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from bench.testbed.node import Node
from cni.errors import NotReady
from cni.kernel import macvtap
from cni.kernel.netlink import NotFound
from cni.kernel.tuntap import IFF_MULTI_QUEUE, IFF_VNET_HDR, IFREQ, TUNGETIFF
from cni.modes import macvtap as mode
from tests.netns.macvtaplib import FORMS, numbers, show
from tests.netns.nslib import present
from tests.netns.wirelib import MTU, POD4, POD_MAC, Attachment, Topology, chained, mastered

OWNER, GROUP = 4711, 4712
OTHER_MAC = "02:00:00:00:00:99"


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Topology:
    return FORMS[request.param]


def qdiscs(node: Node, name: str, where: Path) -> str:
    return node.run(["tc", "qdisc", "show", "dev", name], where).stdout


# What an ADD makes.


def test_the_interface_is_a_macvtap_as_the_result_says(node: Node) -> None:
    with mastered(node, v6=True, mtu=1400, macvtap={"mode": "vepa"}) as attached:
        (said,) = attached.add()["interfaces"]
        link = show(node, "eth0", attached.pod)
        assert (link["linkinfo"]["info_kind"], link["linkinfo"]["info_data"]["mode"]) == (
            "macvtap",
            "vepa",
        )
        assert (link["address"], link["mtu"]) == (said["mac"], said["mtu"])
        assert (said["mtu"], said["sandbox"]) == (1400, str(attached.pod))
        assert {"UP", "LOWER_UP", "ALLMULTI"} <= set(link["flags"])
        assert link["ifindex"] in numbers(attached)
        assert min(numbers(attached)) > 8192 + 0xFFFF
        found = {f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"]}
        assert found == {ip["address"] for ip in attached.result["ips"]}
        assert not any(a.get("tentative") for a in link["addr_info"])
        assert "default" in node.run(["ip", "route"], attached.pod).stdout


def test_chained_the_interface_stays_as_it_was(node: Node) -> None:
    with chained(node, v6=True, mode="macvtap") as attached:
        before = show(node, "eth0", attached.pod), qdiscs(node, "eth0", attached.pod)
        attached.add()
        during = show(node, "eth0", attached.pod)
        tap = show(node, attached.macvtap, attached.pod)
        details = ["ip", "-details", "link", "show", "dev", attached.macvtap]
        assert "addrgenmode none" in node.run(details, attached.pod).stdout
        assert tap["addr_info"] == []
        assert (tap["address"], tap["mtu"]) == (POD_MAC, MTU)
        for field in ("ifname", "address", "mtu", "addr_info", "flags", "group"):
            assert during[field] == before[0][field]
        attached.delete()
        assert (show(node, "eth0", attached.pod), qdiscs(node, "eth0", attached.pod)) == before


@pytest.mark.parametrize("tap", [{}, {"owner": OWNER}, {"owner": OWNER, "group": GROUP}], ids=str)
def test_the_node_in_dev_is_its_owners(node: Node, form: Topology, tap: dict[str, int]) -> None:
    with form(node, tap=tap) as attached:
        attached.add()
        status = os.lstat(attached.node_path)
        assert stat.S_ISCHR(status.st_mode)
        assert status.st_uid == tap.get("owner", 0)
        assert status.st_gid == tap.get("group", 0)
        assert status.st_mode & 0o777 == (0o660 if "group" in tap else 0o600)
        index = show(node, attached.macvtap, attached.pod)["ifindex"]
        assert attached.node_path == f"/dev/tap{index}"
        with attached.namespace.entered():
            assert macvtap.device_number(attached.macvtap, index) == status.st_rdev
        attached.delete()
        assert not Path(f"/dev/tap{index}").exists()


def test_what_opens_is_the_queue_of_a_vmm(node: Node, form: Topology) -> None:
    with form(node) as attached:
        attached.add()
        (fd,) = attached.guest().fds
        name, flags = IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ.size)))
        assert name.rstrip(b"\0").decode() == attached.macvtap
        assert flags & IFF_VNET_HDR
        assert not flags & IFF_MULTI_QUEUE
        path = attached.node_path
        attached.delete()
        with pytest.raises(NotFound):
            macvtap.open_macvtap(path)


def test_flows_spread_over_the_queues(node: Node, form: Topology) -> None:
    with form(node, queues=2) as attached:
        attached.add()
        port, guest = attached.port(), attached.guest()
        flags = IFREQ.unpack(fcntl.ioctl(guest.fds[0], TUNGETIFF, bytes(IFREQ.size)))[1]
        assert flags & IFF_MULTI_QUEUE
        assert show(node, attached.macvtap, attached.pod)["num_tx_queues"] == 2
        mac = attached.result["interfaces"][0]["mac"]
        flow = Ether(src="02:00:00:00:0f:01", dst=mac) / IP(src="10.77.0.99", dst=POD4)
        frames = {bytes(flow / UDP(sport=n) / Raw(b"flow")) for n in range(1, 65)}
        for frame in frames:
            port.send(frame)
        received = [present(guest.receive_with_header()) for _ in frames]
        assert {frame for *_, frame in received} == frames
        assert {queue for queue, *_ in received} == {0, 1}


def test_the_mac_of_passthru_is_the_nics_or_the_nic_gets_the_guests(node: Node) -> None:
    with mastered(node, macvtap={"mode": "passthru"}) as attached:
        nic = show(node, attached.conf["master"], node.path)["address"]
        assert attached.add()["interfaces"][0]["mac"] == nic
        attached.delete()
        attached.conf["mac"] = OTHER_MAC
        assert attached.add()["interfaces"][0]["mac"] == OTHER_MAC
        assert show(node, "eth0", attached.pod)["address"] == OTHER_MAC
        assert show(node, attached.conf["master"], node.path)["address"] == OTHER_MAC
        attached.delete()
        assert show(node, attached.conf["master"], node.path)["address"] == nic


# CHECK finds what is broken.

BREAKS = {
    "down": "ip link set {tap} down",
    "MTU": "ip link set {tap} mtu 1300",
    "gone": "ip link del {tap}",
    "filter gone": "tc qdisc del dev {tap} clsact",
    "mode of the node": "chmod 666 {path}",
    "owner of the node": "chown 4711 {path}",
    "node gone": "rm {path}",
    "another group": "ip link set {tap} group 5",
}


@pytest.mark.parametrize("what", BREAKS)
def test_check_finds(node: Node, form: Topology, what: str) -> None:
    with form(node) as attached:
        attached.add()
        path = attached.node_path
        assert check(attached) == 0
        node.run(BREAKS[what].format(tap=attached.macvtap, path=path).split(), attached.pod)
        assert check(attached) == 104


def test_check_finds_that_the_chain_is_broken(node: Node) -> None:
    with chained(node, mode="macvtap") as attached:
        attached.add()
        assert check(attached) == 0
        node.run("tc filter del dev eth0 ingress".split(), attached.pod)
        assert check(attached) == 104


def check(attached: Attachment) -> int:
    conf = {**attached.conf, "prevResult": attached.result}
    return attached.node.call("CHECK", conf, attached.pod.name, attached.pod).code


# STATUS tells whether macvtaps can be had.


def test_status(node: Node) -> None:
    with mastered(node) as attached:
        nic = attached.conf["master"]
        assert node.call("STATUS", attached.conf).code == 0
        node.run(["ip", "link", "set", nic, "down"])
        answer = node.call("STATUS", attached.conf)
        assert (answer.code, f"{nic} is down" in answer.out["msg"]) == (50, True)
        answer = node.call("STATUS", {**attached.conf, "master": "nowhere"})
        assert (answer.code, "no interface nowhere" in answer.out["msg"]) == (50, True)


def test_status_where_the_kernel_has_no_macvtap(monkeypatch: pytest.MonkeyPatch) -> None:
    mode._require_macvtap.cache_clear()
    monkeypatch.setattr(mode, "_try", lambda _: "Operation not supported")
    with pytest.raises(NotReady, match="no macvtap: Operation not supported"):
        mode._require_macvtap()
    monkeypatch.undo()
    mode._require_macvtap()


def test_open_says_what_is_missing() -> None:
    with pytest.raises(NotFound, match="/dev/tap0"):
        macvtap.open_macvtap("/dev/tap0")
