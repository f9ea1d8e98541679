"""What Kata Containers finds: a namespace fit for its scan, or a DAN file that names a tap."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import BIN, Answer, Node
from cni.kernel.netlink import Busy
from cni.kernel.tuntap import (
    IFF_MULTI_QUEUE,
    IFF_NO_PI,
    IFF_PERSIST,
    IFF_TAP,
    IFF_VNET_HDR,
    IFREQ,
    TUNGETIFF,
    open_tap,
)

# The structures of Kata's dan.rs, with the types that serde accepts; deliberately written anew,
# so that a mistake in vmlink's own does not hide here.
DEVICE = {"type": str, "tap_name": str, "queue_num": int, "queue_size": int}
INTERFACE = {"ip_addresses": [str], "mtu": int, "ntype": str, "flags": int}
ROUTE = {"dest": str, "gateway": str, "source": str, "scope": int, "flags": int, "mtu": int}
NEIGHBOUR = {"ip_address": str, "hardware_addr": str, "state": int, "flags": int}
INFO = {"interface": INTERFACE, "routes": [ROUTE], "neighbors": [NEIGHBOUR]}
ENTRY = {"name": str, "guest_mac": str, "device": DEVICE, "network_info": INFO}
DAN = {"netns": type(None), "devices": [ENTRY]}


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A node whose vmlinkd writes its DAN files to a directory of the node."""
    with Node() as made:
        settings = made.lab.dir / "vmlinkd.yaml"
        settings.write_text(f"dan_dir: {dans(made)}\n")
        made.start((str(BIN / "vmlinkd"), "--config", str(settings)))
        made.run(["ip", "link", "add", "nic", "type", "veth", "peer", "name", "wire"])
        made.run(["ip", "link", "set", "nic", "up"])
        made.run("ip link add br0 address 02:00:00:00:00:b0 type bridge".split())
        yield made


def dans(node: Node) -> Path:
    return node.lab.dir / "dans"


def network(node: Node, **keys: Any) -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0",
        "name": "kata",
        "type": "vmlink",
        "runtime": "kata",
        "linux": {"bridge": "br0", "gateway": True},
        "ipam": node.ipam(
            "10.9.0.0/24", "fd00:9::/64", routes=("0.0.0.0/0", "10.1.0.0/16", "::/0")
        ),
        **keys,
    }


@contextmanager
def attached(
    node: Node, pod: Path, ifname: str = "eth0", **keys: Any
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """ADD, a CHECK that passes, and DEL in the end: (configuration with prevResult, result)."""
    conf = network(node, **keys)
    try:
        result = node.call("ADD", conf, "box", pod, ifname).expect()
        check = {**conf, "prevResult": result}
        node.call("CHECK", check, "box", pod, ifname).expect()
        yield check, result
    finally:
        node.call("DEL", conf, "box", pod, ifname).expect()


def shown(node: Node, pod: Path, *what: str) -> Any:
    return json.loads(node.run(["ip", "-json", "-details", *what], pod).stdout or "[]")


def addressed(node: Node, pod: Path) -> dict[str, set[str]]:
    """What Kata's scan plugs into the VM: each link but lo that has an address."""
    links = {link["ifname"]: link["addr_info"] for link in shown(node, pod, "address")}
    found = {
        n: {f"{a['local']}/{a['prefixlen']}" for a in i} for n, i in links.items() if n != "lo"
    }
    return {name: addresses for name, addresses in found.items() if addresses}


def silent(node: Node, pod: Path) -> bool:
    links = [link for link in shown(node, pod, "link") if link["ifname"] != "lo"]
    return all(link["inet6_addr_gen_mode"] == "none" for link in links)


@pytest.mark.parametrize("runtime", ["kata", "kata-go"])
@pytest.mark.parametrize("mode", ["tc", "veth"])
def test_the_namespace_is_as_katas_scan_wants_it(
    node: Node, pod: Path, runtime: str, mode: str
) -> None:
    with attached(node, pod, runtime=runtime, mode=mode) as (_, result):
        promised = {ip["address"] for ip in result["ips"]}
        assert addressed(node, pod) == {"eth0": promised}
        assert silent(node, pod)
        (link,) = shown(node, pod, "link", "show", "eth0")
        assert (link["address"], link["linkinfo"]["info_kind"]) == (
            result["interfaces"][0]["mac"],
            "veth",
        )
        assert link["mtu"] == result["interfaces"][0]["mtu"]
        qdiscs = node.run(["tc", "qdisc", "show", "dev", "eth0"], pod).stdout
        assert not [word for word in ("ingress", "clsact") if word in qdiscs]
        routes = [r for f in "46" for r in shown(node, pod, f"-{f}", "route")]
        kept = {r["dst"]: r for r in routes if r["protocol"] != "kernel"}
        assert {"default", "10.1.0.0/16"} == set(kept)
        neighbours = shown(node, pod, "neighbour")
        permanent = {(n["dst"], n["lladdr"]) for n in neighbours if n["state"] == ["PERMANENT"]}
        gateways = {ip["gateway"] for ip in result["ips"]}
        assert permanent == {(gateway, "02:00:00:00:00:b0") for gateway in gateways}
        assert not (dans(node) / "box.json").exists()


def test_check_misses_a_neighbour(node: Node, pod: Path) -> None:
    with attached(node, pod) as (check, result):
        gateway = result["ips"][0]["gateway"]
        node.run(["ip", "neighbour", "del", gateway, "dev", "eth0"], pod)
        failed = node.call("CHECK", check, "box", pod)
        assert (failed.code, gateway in failed.out["msg"]) == (104, True)


def fits(value: Any, structure: Any) -> None:
    """Assert that `value` has exactly these fields, each of its type."""
    if isinstance(structure, dict):
        assert set(value) == set(structure)
        for key, kind in structure.items():
            fits(value[key], kind)
    elif isinstance(structure, list):
        for each in value:
            fits(each, structure[0])
    else:
        assert type(value) is structure


def read(node: Node) -> Any:
    return json.loads((dans(node) / "box.json").read_text())


@pytest.mark.parametrize("queues", [1, 3])
@pytest.mark.parametrize("placeholder", [False, True])
def test_the_dan_file_and_its_tap(node: Node, pod: Path, queues: int, placeholder: bool) -> None:
    keys: dict[str, Any] = {
        "mode": "tap",
        "queues": queues,
        "placeholder": placeholder,
        "mtu": 1400,
    }
    with attached(node, pod, **keys) as (check, result):
        file = read(node)
        fits(file, DAN)
        (entry,) = file["devices"]
        promised = [ip["address"] for ip in result["ips"]]
        assert entry["name"] == "eth0"
        assert entry["guest_mac"] == result["interfaces"][0]["mac"]
        assert entry["device"]["type"] == "host-tap"
        assert entry["device"]["queue_num"] == queues
        info = entry["network_info"]
        assert info["interface"]["ip_addresses"] == promised
        assert (info["interface"]["mtu"], info["interface"]["ntype"]) == (1400, "tuntap")
        v4, v6 = (ip["gateway"] for ip in result["ips"])
        routes = [(r["dest"], r["gateway"]) for r in info["routes"]]
        assert sorted(routes) == sorted([("", v4), ("10.1.0.0/16", v4), ("", v6)])
        neighbours = {(n["ip_address"], n["state"]) for n in info["neighbors"]}
        assert neighbours == {(f"{v4}/32", 0x80), (f"{v6}/128", 0x80)}
        opens(node, entry["device"]["tap_name"], queues)
        (link,) = shown(node, node.path, "link", "show", entry["device"]["tap_name"])
        assert (link["mtu"], link["inet6_addr_gen_mode"]) == (1400, "none")
        assert addressed(node, pod) == ({"eth0": set(promised)} if placeholder else {})
        if placeholder:
            (link,) = shown(node, pod, "link", "show", "eth0")
            assert "NOARP" not in link["flags"]
        (dans(node) / "box.json").write_text(json.dumps({**file, "devices": []}))
        failed = node.call("CHECK", check, "box", pod)
        assert (failed.code, "expected the entry of eth0" in failed.out["msg"]) == (104, True)
        (dans(node) / "box.json").write_text(json.dumps(file))
    assert list(dans(node).iterdir()) == []


def test_the_dan_file_has_no_default_route_of_another_table(node: Node, pod: Path) -> None:
    """DAN knows no table, and the agent in the guest would replace the default route."""
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "0.0.0.0/0", "gw": "10.9.0.66", "table": 100}]
    routes += [{"dst": "::/0", "gw": "fd00:99::1"}, {"dst": "::/0", "gw": "fd00:9::66"}]
    ipam = {**node.ipam("10.9.0.0/24", "fd00:9::/64"), "routes": routes}
    with attached(node, pod, mode="tap", ipam=ipam):
        (entry,) = read(node)["devices"]
        found = [(r["dest"], r["gateway"], r["flags"]) for r in entry["network_info"]["routes"]]
        assert found == [("", "10.9.0.1", 0), ("", "fd00:99::1", 4)]


def opens(node: Node, tap: str, queues: int) -> None:
    """Assert that the tap opens by name in the host's namespace, with exactly Kata's flags."""
    several = IFF_MULTI_QUEUE if queues > 1 else 0
    with node.namespace.entered():
        fds = open_tap(tap, queues)
        try:
            found = {IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ.size)))[1] for fd in fds}
            assert found == {IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_PERSIST | several}
            with pytest.raises(Busy) if queues == 1 else ExitStack():
                open_tap(tap, queues)
        finally:
            for fd in fds:
                os.close(fd)


def test_the_nics_of_a_sandbox_share_one_file(node: Node, pod: Path) -> None:
    conf = network(node, mode="tap")
    names = ["net10", *(f"eth{n}" for n in range(6))]

    def call(verb: str, ifname: str) -> None:
        node.call(verb, conf, "box", pod, ifname).expect()

    def found() -> list[str]:
        return [device["name"] for device in read(node)["devices"]]

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(call, ["ADD"] * len(names), names))
        assert sorted(found()) == sorted(names)
        call("DEL", "eth0")
        assert sorted(found()) == sorted(set(names) - {"eth0"})
        list(pool.map(call, ["DEL"] * len(names), names))
    for ifname in names:  # one after the other, the guest has them in that order
        call("ADD", ifname)
    assert found() == names
    for ifname in names:
        call("DEL", ifname)
    assert list(dans(node).iterdir()) == []


def test_a_refused_add_leaves_the_file_as_it_was(node: Node, pod: Path) -> None:
    taken = {"netns": str(pod), "devices": [{"name": "eth0", "device": {"type": "vfio"}}]}
    dans(node).mkdir(exist_ok=True)
    (dans(node) / "box.json").write_text(json.dumps(taken))
    refused = node.call("ADD", network(node, mode="tap"), "box", pod)
    assert (refused.code, "has another NIC eth0" in refused.out["msg"]) == (101, True)
    assert read(node) == taken
    (dans(node) / "box.json").unlink()


def refused(answer: Answer, code: int) -> bool:
    told = "Kata does not look at the pod's namespace" in answer.out["msg"]
    return told and answer.code == code


@pytest.mark.parametrize("first", ["tc", "tap"])
def test_a_sandbox_has_the_file_or_the_scan(node: Node, pod: Path, first: str) -> None:
    """Kata would start the VM without the NICs of the scan."""
    second = {"tc": "tap", "tap": "tc"}[first]
    with attached(node, pod, mode=first) as (check, _):
        links, names = shown(node, pod, "link"), sorted(dans(node).glob("*"))
        assert refused(node.call("ADD", network(node, mode=second), "box", pod, "net1"), 7)
        assert (shown(node, pod, "link"), sorted(dans(node).glob("*"))) == (links, names)
        node.call("CHECK", check, "box", pod).expect()


def test_the_file_and_the_scan_at_the_same_time(node: Node, pod: Path) -> None:
    """Whichever comes first, not both succeed."""

    def add(mode: str) -> Answer:
        return node.call("ADD", network(node, mode=mode), "box", pod, mode)

    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(add, ["tc", "tap"]))
        for mode in ("tc", "tap"):
            node.call("DEL", network(node, mode=mode), "box", pod, mode).expect()
        assert any(refused(answer, 7) for answer in answers if answer.code)


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_veth_of_another_plugin_beside_the_file(node: Node, pod: Path, when: str) -> None:
    node.run("ip link add other type veth peer name far".split(), pod)
    address = "ip address add 10.8.0.2/24 dev other".split()
    if when == "before":
        node.run(address, pod)
        assert refused(node.call("ADD", network(node, mode="tap"), "box", pod), 7)
        assert list(dans(node).glob("*")) == []
    else:  # without an address, Kata would not look at it either
        with attached(node, pod, mode="tap") as (check, _):
            node.run(address, pod)
            assert refused(node.call("CHECK", check, "box", pod), 104)


@pytest.mark.parametrize("how", ["gc", "record lost"])
def test_the_dan_file_goes_without_a_plain_del(node: Node, pod: Path, how: str) -> None:
    with attached(node, pod, mode="tap") as (check, _):
        conf = {k: v for k, v in check.items() if k != "prevResult"}
        if how == "gc":
            node.call("GC", {**conf, "cni.dev/valid-attachments": []}).expect()
        else:
            for record in (node.run_dir / "state").iterdir():
                record.unlink()
            node.call("DEL", conf, "box").expect()
        assert list(dans(node).iterdir()) == []


def test_katas_macvtap_in_the_namespace(node: Node, pod: Path) -> None:
    keys: dict[str, Any] = {"master": "nic", "mode": "macvtap", "runtime": "kata-go"}
    conf = {k: v for k, v in network(node, **keys).items() if k != "linux"}
    try:
        result = node.call("ADD", conf, "box", pod).expect()
        assert addressed(node, pod) == {"eth0": {ip["address"] for ip in result["ips"]}}
        assert silent(node, pod)
        (link,) = shown(node, pod, "link", "show", "eth0")
        assert link["linkinfo"]["info_kind"] == "macvtap"
        assert link["ifindex"] >= 8192
        assert Path(f"/dev/tap{link['ifindex']}").is_char_device()
    finally:
        node.call("DEL", conf, "box", pod).expect()
