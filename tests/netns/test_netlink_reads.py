"""What netlink reads of links, addresses, routes, neighbours and qdiscs is what the kernel has."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from cni.kernel import bridge_vlans, ethtool, rtnl_encode, tc_encode
from cni.kernel.bridge_vlans import VlanRange
from cni.kernel.netlink import Exists, Netlink, NetlinkError, NotFound, Unsupported
from cni.kernel.netns import Namespace
from cni.kernel.route_encode import add_route
from cni.kernel.rtnl_decode import QdiscInfo
from tests.netns.nslib import Pair, first_error, ifindex, namespaces, the_link

MAC, MAC2 = "02:00:00:00:00:01", "02:00:00:00:00:02"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def pod() -> Iterator[Pair]:
    with namespaces(1) as [pair]:
        yield pair


def wired(netlink: Netlink) -> None:
    netlink.batch(rtnl_encode.new_veth("a", "b", up=True))
    netlink.batch(rtnl_encode.set_link(ifindex(netlink, "b"), up=True))


def test_index_is_of_the_sockets_namespace(pod: Pair) -> None:
    _, netlink = pod
    netlink.batch(rtnl_encode.new_veth("vmlinkonly", "b"))
    assert ifindex(netlink, "vmlinkonly") == the_link(netlink, "vmlinkonly").index
    assert netlink.index("none") is None
    assert netlink.link("none") is None
    assert netlink.link(index=9999) is None
    with pytest.raises(OSError, match="no interface"):
        socket.if_nametoindex("vmlinkonly")


def test_addresses_routes_neighbours(pod: Pair) -> None:
    _, netlink = pod
    wired(netlink)
    a, b = ifindex(netlink, "a"), ifindex(netlink, "b")
    netlink.batch(
        rtnl_encode.set_link(1, up=True),
        rtnl_encode.add_address(a, "10.1.2.3/24"),
        rtnl_encode.add_address(a, "fd00::3/64"),
        rtnl_encode.add_address(b, "10.7.7.7/32"),
        add_route("0.0.0.0/0", gateway="10.1.2.1", index=a, mtu=1300, advmss=1260),
        add_route("::/0", gateway="fd00::1", index=a, priority=7),
        add_route("10.50.0.0/16", gateway="10.1.2.9", index=a, table=1000),
        add_route("10.60.0.0/16", index=b),
        rtnl_encode.add_neighbour(a, "10.1.2.1", MAC),
        rtnl_encode.add_neighbour(a, "10.1.2.1", MAC2),
        rtnl_encode.add_neighbour(b, "10.1.2.1", MAC),
    )
    found = netlink.addresses(a)
    assert {"10.1.2.3/24", "fd00::3/64"} <= set(found)
    assert all(x.startswith(("10.1.2.3", "fd00::3", "fe80:")) for x in found)
    routes = {(r.dst, r.table): r for r in netlink.routes(a)}
    assert all(r.oif == a for r in routes.values())
    assert routes["0.0.0.0/0", 254].gw == "10.1.2.1"
    assert routes["::/0", 254].gw == "fd00::1"
    assert routes["10.50.0.0/16", 1000].gw == "10.1.2.9"
    assert routes["10.1.2.0/24", 254].protocol == 2
    assert ("10.60.0.0/16", 254) in {(r.dst, r.table) for r in netlink.routes()}
    [entry] = netlink.neighbours(a)
    assert (entry.ip, entry.mac, entry.state) == ("10.1.2.1", MAC2, 0x80)
    assert netlink.addresses(9999) == []


def test_metrics_of_a_route(pod: Pair) -> None:
    ns, netlink = pod
    wired(netlink)
    a = ifindex(netlink, "a")
    netlink.batch(
        rtnl_encode.add_address(a, "10.1.2.3/24"),
        add_route("0.0.0.0/0", gateway="10.1.2.1", index=a, mtu=1300, advmss=1260),
        add_route("10.6.0.0/16", index=a, priority=7, scope=200),
    )
    default = shown(ns, "0.0.0.0/0")
    assert default["metrics"] == [{"mtu": 1300, "advmss": 1260}]
    near = shown(ns, "10.6.0.0/16")
    assert (near["metric"], near["scope"]) == (7, "site")


def shown(ns: Namespace, destination: str) -> dict[str, Any]:
    """The route as ip-route(8) shows it."""
    command = ["ip", "-json", "route", "show", "exact", destination]
    with ns.entered():
        done = subprocess.run(command, capture_output=True, check=True)
    [route] = json.loads(done.stdout)
    assert isinstance(route, dict)
    return route


def test_addresses_are_ready_at_once(pod: Pair) -> None:
    _, netlink = pod
    wired(netlink)
    netlink.batch(rtnl_encode.add_address(ifindex(netlink, "a"), "fd00::3/64"))
    with pod[0].entered(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("fd00::3", 0))  # EADDRNOTAVAIL while duplicate detection runs


def test_addrgenmode_none_leaves_no_link_local(pod: Pair) -> None:
    _, netlink = pod
    netlink.batch(rtnl_encode.new_veth("a", "b"))
    a, b = ifindex(netlink, "a"), ifindex(netlink, "b")
    netlink.batch(
        rtnl_encode.set_link(a, addrgenmode_none=True),
        rtnl_encode.set_link(a, up=True),
        rtnl_encode.set_link(b, up=True),
    )
    assert netlink.addresses(a) == []
    assert [x[:4] for x in netlink.addresses(b)] == ["fe80"]


def test_set_link(pod: Pair) -> None:
    _, netlink = pod
    netlink.batch(rtnl_encode.new_bridge("br0"), rtnl_encode.new_veth("a", "b"))
    a, bridge = ifindex(netlink, "a"), ifindex(netlink, "br0")
    netlink.batch(
        rtnl_encode.set_link(a, up=True, mtu=1300, mac=MAC, master=bridge, group=9, name="renamed")
    )
    changed = the_link(netlink, "renamed")
    assert (changed.index, changed.mac, changed.mtu, changed.master) == (a, MAC, 1300, bridge)
    assert (changed.group, changed.up) == (9, True)
    netlink.batch(rtnl_encode.set_link(a, master=0, up=False))
    changed = the_link(netlink, "renamed")
    assert (changed.master, changed.up) == (0, False)


def test_bridge_vlans(pod: Pair) -> None:
    _, netlink = pod
    netlink.batch(rtnl_encode.new_bridge("br0", MAC, 1400), rtnl_encode.new_veth("a", "b"))
    bridge = the_link(netlink, "br0")
    assert (bridge.kind, bridge.mac, bridge.vlan_filtering) == ("bridge", MAC, False)
    a = ifindex(netlink, "a")
    if isinstance(first_error(netlink, rtnl_encode.set_vlan_filtering(bridge.index)), Unsupported):
        pytest.skip("this kernel has no CONFIG_BRIDGE_VLAN_FILTERING")
    ours = VlanRange(42, 42, pvid=True, untagged=True)
    netlink.batch(
        rtnl_encode.set_link(a, master=bridge.index),
        bridge_vlans.delete_vlans(a),
        rtnl_encode.bridge_vlan(a, 42, untagged_pvid=True),
        rtnl_encode.bridge_vlan(bridge.index, 42, untagged_pvid=False, on_bridge_itself=True),
    )
    assert the_link(netlink, "br0").vlan_filtering is True
    assert netlink.vlans(a) == [ours]
    netlink.batch(*(rtnl_encode.bridge_vlan(a, vid, untagged_pvid=False) for vid in (7, 8, 4094)))
    tagged = [VlanRange(*vids, pvid=False, untagged=False) for vids in ((7, 8), (4094, 4094))]
    assert netlink.vlans(a) == [tagged[0], ours, tagged[1]]
    for _ in range(2):
        netlink.batch(bridge_vlans.delete_vlans(a))
        assert netlink.vlans(a) == []


def test_links(pod: Pair) -> None:
    _, netlink = pod
    netlink.batch(*(rtnl_encode.new_veth(f"a{i}", f"b{i}") for i in range(40)))
    found = netlink.links()
    assert {f"a{i}" for i in range(40)} | {f"b{i}" for i in range(40)} <= {x.name for x in found}
    assert netlink.link("a7") in found


def test_the_root_qdisc(pod: Pair) -> None:
    _, netlink = pod
    ours, other = 0x47610000, 0x47620000
    netlink.batch(rtnl_encode.new_veth("v0", "v1"))
    index = ifindex(netlink, "v0")
    bucket = tc_encode.add_tbf(index, ours, rate=6_250_000, burst=1518, limit=160_000)
    assert netlink.root_qdisc(index) is None
    assert netlink.root_qdisc(99) is None
    netlink.batch(bucket)
    assert netlink.root_qdisc(index) == QdiscInfo("tbf", ours, tc_encode.ROOT, 6_250_000)
    with pytest.raises(Exists):
        netlink.batch(tc_encode.add_tbf(index, other, rate=1, burst=1518, limit=1))
    with pytest.raises(NetlinkError, match="Invalid handle"):
        netlink.batch(tc_encode.del_tbf(index, other))
    netlink.batch(tc_encode.del_tbf(index, ours))
    assert netlink.root_qdisc(index) is None
    assert the_link(netlink, "v0").index == index


def test_tx_checksum_offload_is_read_and_turned_off(pod: Pair) -> None:
    ns, netlink = pod
    wired(netlink)
    a, b = ifindex(netlink, "a"), ifindex(netlink, "b")
    with ns.entered():
        assert ethtool.tx_checksum(a)
        ethtool.stop_tx_checksum(a)
        assert (ethtool.tx_checksum(a), ethtool.tx_checksum(b)) == (False, True)
        shown = subprocess.run(["ethtool", "-k", "a"], capture_output=True, text=True, check=True)
        assert "tx-checksumming: off\n" in shown.stdout
        assert "tx-tcp-segmentation: off" in shown.stdout
        ethtool.stop_tx_checksum(a)


def test_an_offload_that_cannot_be_read_or_set_is_named(pod: Pair) -> None:
    with pod[0].entered():
        with pytest.raises(NotFound, match="cannot read TX checksum offload of link 99: "):
            ethtool.tx_checksum(99)
        with pytest.raises(NotFound, match="cannot turn TX checksum offload off on link 99: "):
            ethtool.stop_tx_checksum(99)


def test_an_index_without_the_right_to_bind_a_socket_again(pod: Pair) -> None:
    """The unit of a former version grants vmlinkd no CAP_NET_RAW."""
    program = (
        "from cni.kernel.netlink import Netlink\n"
        "with Netlink() as netlink:\n"
        "    print([netlink.index(name) for name in ('lo', 'lo', 'none')])\n"
    )
    dropped = ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-all"]
    with pod[0].entered():
        done = subprocess.run(
            [*dropped, sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
    assert done.stdout == "[1, 1, None]\n"
