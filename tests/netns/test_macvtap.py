"""A macvtap attached: link, device node and queues as promised; what is refused; what is left."""

import fcntl
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

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
from cni.spec.types import AttachmentKey
from tests.netns.wirelib import MTU, POD4, POD_MAC, chained, mastered

OWNER, GROUP = 4711, 4712
OTHER_MAC = "02:00:00:00:00:99"
FORMS = {"master": mastered, "chained": lambda node, **conf: chained(node, mode="macvtap", **conf)}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def show(node, name, where):
    told = node.run(["ip", "-json", "-details", "address", "show", "dev", name], where).stdout
    return json.loads(told)[0]


def qdiscs(node, name, where):
    return node.run(["tc", "qdisc", "show", "dev", name], where).stdout


def refused(attached, *words):
    answer = attached.node.call("ADD", attached.conf, attached.pod.name, attached.pod)
    assert not [word for word in words if word not in answer.out["msg"]], answer.out
    left = attached.node.run(["ip", "-details", "link"], attached.pod).stdout
    assert "macvtap" not in left
    return answer.code


def numbers(attached):
    return AttachmentKey(attached.pod.name, "eth0").ifindexes


# what is there


def test_the_interface_is_a_macvtap_as_the_result_says(node):
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


def test_chained_the_interface_stays_as_it_was(node):
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


def checked(attached):
    return {**attached.conf, "prevResult": attached.result}


@pytest.mark.parametrize("tap", [{}, {"owner": OWNER}, {"owner": OWNER, "group": GROUP}], ids=str)
def test_the_node_in_dev_is_its_owners(node, form, tap):
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
        assert not os.path.exists(f"/dev/tap{index}")


def test_what_opens_is_the_queue_of_a_vmm(node, form):
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


def test_flows_spread_over_the_queues(node, form):
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
        received = [guest.receive_with_header() for _ in frames]
        assert {frame for *_, frame in received} == frames
        assert {queue for queue, *_ in received} == {0, 1}


def test_the_mac_of_passthru_is_the_nics_or_the_nic_gets_the_guests(node):
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


# what is refused


def test_a_master_that_is_not_there(node):
    with mastered(node, master="nowhere") as attached:
        assert refused(attached, "master", "nowhere") == 7


def test_an_mtu_above_the_masters(node):
    with mastered(node, mtu=MTU + 1) as attached:
        assert refused(attached, "mtu", str(MTU + 1), attached.conf["master"]) == 7


def test_a_master_that_is_a_port(node):
    with mastered(node) as attached:
        node.run(["ip", "link", "set", attached.conf["master"], "master", "br0"])
        assert refused(attached, "master", "port of a bridge") == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [({"macvtap": {"mode": "passthru"}}, "mode passthru"), ({}, f"mac: {OTHER_MAC}")],
    ids=["passthru", "MAC"],
)
def test_what_does_not_go_beside_another(node, change, words):
    with mastered(node, mac=OTHER_MAC) as first:
        first.add()
        second = node.pod()
        answer = node.call("ADD", {**first.conf, **change}, second.name, second)
        assert (answer.code, words in answer.out["msg"]) == (7, True)
        node.lab.drop(second)


def test_a_chain_on_a_macvlan(node):
    with chained(node, mode="macvtap") as attached:
        for command in (
            "link set eth0 name low",
            "link add link low name eth0 type macvlan mode bridge",
        ):
            node.run(["ip", *command.split()], attached.pod)
        assert refused(attached, "prevResult", "use mode tc") == 7


def test_the_name_is_taken(node):
    with mastered(node) as attached:
        node.run("ip link add eth0 type ifb".split(), attached.pod)
        assert refused(attached, "eth0 exists already") == 101
        attached.delete()
        assert show(node, "eth0", attached.pod)["linkinfo"]["info_kind"] == "ifb"


# the number


def ifindex(attached):
    attached.add()
    return show(attached.node, attached.macvtap, attached.pod)["ifindex"]


def test_a_number_that_a_link_of_the_pod_has(node, form):
    with form(node) as attached:
        first, second, *_ = numbers(attached)
        node.run(f"ip link add x index {first} type ifb".split(), attached.pod)
        assert ifindex(attached) == second


def test_a_number_that_a_macvtap_of_another_namespace_has(node, form):
    with form(node) as attached, stranger(node, attached) as (index, status):
        assert ifindex(attached) == index + 1
        assert os.lstat(macvtap.node_path(index)) == status
        attached.delete()
        assert os.lstat(macvtap.node_path(index)) == status
        assert not os.path.exists(macvtap.node_path(index + 1))


@contextmanager
def stranger(node, attached):
    """Somebody's macvtap in a namespace of its own, with our first number."""
    where, index = node.pod(), numbers(attached)[0]
    try:
        for command in (
            "link add low type veth peer name far",
            f"link add link low name tap index {index} type macvtap",
        ):
            node.run(["ip", *command.split()], where)
        yield index, os.lstat(macvtap.node_path(index))
    finally:
        node.run("ip link del low".split(), where)
        node.lab.drop(where)


def test_all_numbers_taken(node):
    with mastered(node) as attached:
        for index in numbers(attached):
            node.run(f"ip link add x{index} index {index} type ifb".split(), attached.pod)
        assert refused(attached, "all taken") == 100


def test_a_node_of_a_macvtap_that_is_gone_is_replaced(node, form):
    with form(node) as attached:
        path = macvtap.node_path(numbers(attached)[0])
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(macvtap_major(), 0))
        assert ifindex(attached) == numbers(attached)[0]
        assert os.lstat(path).st_mode & 0o777 == 0o600


def macvtap_major():
    with open("/proc/devices") as f:
        return next(int(line.split()[0]) for line in f if line.rstrip().endswith(" macvtap"))


def test_one_key_on_two_nodes_at_once(node):
    """What the numbers derive from is the same; the kernel has them once for each namespace."""
    with Node() as other:
        other.start()
        ends = {}
        for each in (node, other):
            pod = each.pod("twin")
            each.run("ip link add nic-twin type veth peer name far-twin".split())
            each.run("ip link set nic-twin up".split())
            ends[each] = pod
        conf = {"cniVersion": "1.1.0", "name": "twins", "type": "vmlink", "mode": "macvtap"}
        conf["master"] = "nic-twin"
        try:
            for _ in range(5):
                with ThreadPoolExecutor(2) as pool:
                    told = list(pool.map(lambda n: n.call("ADD", conf, "twin", ends[n]), ends))
                assert [answer.code for answer in told] == [0, 0]
                found = {show(n, "eth0", pod)["ifindex"] for n, pod in ends.items()}
                assert len(found) == 2
                for n, pod in ends.items():
                    n.call("DEL", conf, "twin", pod).expect()
                assert not [i for i in found if os.path.exists(macvtap.node_path(i))]
        finally:
            for n, pod in ends.items():
                n.run("ip link del nic-twin".split())
                n.lab.drop(pod)


def test_many_at_once_on_one_nic(node):
    with mastered(node, v6=True) as attached:
        pods = [node.pod() for _ in range(24)]

        def call(verb):
            with ThreadPoolExecutor(len(pods)) as pool:
                return list(pool.map(lambda p: node.call(verb, attached.conf, p.name, p), pods))

        results = [answer.expect() for answer in call("ADD")]
        assert len({ip["address"] for r in results for ip in r["ips"]}) == 2 * len(pods)
        devices = [
            json.loads(node.run(node.ctl("device", pod.name)).stdout)[0]["path"] for pod in pods
        ]
        assert len({os.lstat(path).st_rdev for path in devices}) == len(pods)
        for answer in call("DEL"):
            answer.expect()
        assert not [path for path in devices if os.path.exists(path)]
        for pod in pods:
            node.lab.drop(pod)


# CHECK

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
def test_check_finds(node, form, what):
    with form(node) as attached:
        attached.add()
        path = attached.node_path
        assert check(attached) == 0
        node.run(BREAKS[what].format(tap=attached.macvtap, path=path).split(), attached.pod)
        assert check(attached) == 104


def test_check_finds_that_the_chain_is_broken(node):
    with chained(node, mode="macvtap") as attached:
        attached.add()
        assert check(attached) == 0
        node.run("tc filter del dev eth0 ingress".split(), attached.pod)
        assert check(attached) == 104


def check(attached):
    return attached.node.call("CHECK", checked(attached), attached.pod.name, attached.pod).code


# STATUS


def test_status(node):
    with mastered(node) as attached:
        nic = attached.conf["master"]
        assert node.call("STATUS", attached.conf).code == 0
        node.run(["ip", "link", "set", nic, "down"])
        answer = node.call("STATUS", attached.conf)
        assert (answer.code, f"{nic} is down" in answer.out["msg"]) == (50, True)
        answer = node.call("STATUS", {**attached.conf, "master": "nowhere"})
        assert (answer.code, "no interface nowhere" in answer.out["msg"]) == (50, True)


def test_status_where_the_kernel_has_no_macvtap(monkeypatch):
    mode._require_macvtap.cache_clear()
    monkeypatch.setattr(mode, "_try", lambda _: "Operation not supported")
    with pytest.raises(NotReady, match="no macvtap: Operation not supported"):
        mode._require_macvtap()
    monkeypatch.undo()
    mode._require_macvtap()


def test_open_says_what_is_missing():
    with pytest.raises(NotFound, match="/dev/tap0"):
        macvtap.open_macvtap("/dev/tap0")
