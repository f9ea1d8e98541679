"""The pool: kits (ports made ahead) are bound by an ADD and come back as new or not at all."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench.testbed import switch
from bench.testbed.node import Node
from bench.testbed.switch import Datapath
from cni.kernel import tuntap
from cni.ovs import schema
from cni.spec.types import POOL, AttachmentKey
from tests.ovs.ovskit import BRIDGE, switch_of, switched
from tests.ovs.poolkit import SIZE, Pooled, tap_of
from tests.ovs.test_attachments import links, row
from tests.waits import until

GUEST = bytes.fromhex("020000000777")


@pytest.fixture(scope="module")
def started(datapath: Datapath) -> Iterator[Pooled]:
    with switched(datapath) as node:
        made = Pooled(node)
        made.start()
        yield made


@pytest.fixture
def pooled(started: Pooled) -> Pooled:
    """A full pool for the network `net` as `Pooled.conf` has it."""
    started.call("STATUS")
    until(lambda: started.told().get("ready") == len(started.kits()) > 0)
    taken = [
        f"taken{n}" for n in range(len(started.kits()) % SIZE)
    ]  # the last ADD triggers a refill
    for name in taken:
        started.call("ADD", name)
    started.fill()
    for name in taken:
        started.call("DEL", name)
    return started


def everything(node: Node, kit: str) -> list[Any]:
    """What the switch and the kernel say about a kit, except for its counters."""
    name = f"vlt{kit}"
    columns = ["external_ids", "ofport", "ingress_policing_rate", "options", "other_config"]
    found = [*row(node, "Interface", name, *columns)]
    found += row(node, "Port", name, "external_ids", "qos", "tag", "protected", "other_config")
    return [*found, links(node)[name]]


def test_a_kit_is_known_to_the_switch_and_belongs_to_nobody(pooled: Pooled) -> None:
    for kit in pooled.kits():
        name = f"vlt{kit}"
        ids, ofport = row(pooled.node, "Interface", name, "external_ids", "ofport")
        ours = {schema.OWNER: str(pooled.node.run_dir), schema.CONTAINER: POOL, schema.IFNAME: kit}
        assert (ids, ofport > 0) == (ours, True)
        assert row(pooled.node, "Port", name, "external_ids", "protected") == [ours, True]
        assert "UP" in links(pooled.node)[name]["flags"]


def test_bound_and_given_back_as_new(pooled: Pooled) -> None:
    before = {kit: everything(pooled.node, kit) for kit in pooled.kits()}
    result = pooled.call("ADD", mac="02:00:00:00:00:07")
    tap = tap_of(result)
    kit = tap[3:]
    assert kit in before
    assert kit not in pooled.kits()
    (ids,) = row(pooled.node, "Interface", tap, "external_ids")
    assert ids == {
        "attached-mac": "02:00:00:00:00:07",
        "iface-id": "web.shop",
        schema.OWNER: str(pooled.node.run_dir),
        schema.CONTAINER: "c1",
        schema.IFNAME: "eth0",
    }
    assert row(pooled.node, "Port", tap, "protected") == [False]
    assert result["interfaces"][0]["mac"] == "02:00:00:00:00:07"
    pooled.call("CHECK", prevResult=result, mac="02:00:00:00:00:07")
    pooled.call("DEL", mac="02:00:00:00:00:07")
    assert pooled.fill() == set(before)
    assert everything(pooled.node, kit) == before[kit]
    assert {key: pooled.told()[key] for key in ("error", "thrown_away")} == {
        "error": "",
        "thrown_away": 0,
    }


def test_a_device_that_multus_names_is_the_pods_and_not_the_networks(pooled: Pooled) -> None:
    before = pooled.kits()
    for address in ("0000:03:02.1", "0000:03:02.2"):
        device = {"deviceID": address, "pciBusID": address}
        assert tap_of(pooled.call("ADD", **device))[3:] in before
        pooled.call("DEL", **device)
        assert pooled.fill() == before


def test_a_limit_towards_the_pod_comes_and_goes(pooled: Pooled) -> None:
    limit = {"ingressRate": 8_000_000, "ingressBurst": 1_000_000}
    tap = tap_of(pooled.call("ADD", runtimeConfig={"bandwidth": limit}))
    assert len(row(pooled.node, "Port", tap, "qos")[0]) == 2
    until(lambda: "htb" in pooled.node.run(["tc", "qdisc", "show", "dev", tap]).stdout)
    pooled.call("DEL")
    assert tap[3:] in pooled.fill()
    assert "QoS" not in {what.split()[0] for what in pooled.switch.rows()}
    until(lambda: "htb" not in pooled.node.run(["tc", "qdisc", "show", "dev", tap]).stdout)


def test_what_a_guest_did_to_its_tap_is_taken_back(pooled: Pooled) -> None:
    before = {kit: everything(pooled.node, kit) for kit in pooled.kits()}
    tap = tap_of(pooled.call("ADD"))
    with pooled.node.namespace.entered():
        (fd,) = tuntap.open_tap(tap)
        fcntl.ioctl(fd, tuntap.TUNSETOFFLOAD, 0x7)
        fcntl.ioctl(fd, tuntap.TUNSETVNETHDRSZ, struct.pack("=i", 12))
        fcntl.ioctl(fd, tuntap.TUNSETSNDBUF, struct.pack("=i", 4096))
        until(lambda: learned(pooled.node, fd))
        os.close(fd)
    pooled.node.run(["ip", "link", "set", tap, "address", "02:00:00:00:00:66"])
    pooled.call("DEL")
    assert tap[3:] in pooled.fill()
    assert everything(pooled.node, tap[3:]) == before[tap[3:]]
    until(lambda: GUEST.hex(":") not in fdb(pooled.node))
    features = pooled.node.run(["ethtool", "-k", tap]).stdout
    assert "tcp-segmentation-offload: off" in features
    with pooled.node.namespace.entered():
        (fd,) = tuntap.open_tap(tap)
        size, buffer = bytearray(4), bytearray(4)
        fcntl.ioctl(fd, 0x800454D7, size)  # TUNGETVNETHDRSZ
        fcntl.ioctl(fd, 0x800454D3, buffer)  # TUNGETSNDBUF
        os.close(fd)
    assert struct.unpack("=ii", size + buffer) == (10, 2**31 - 1)


def learned(node: Node, fd: int) -> bool:
    """Send a frame; tell whether the switch knows its source address.

    It may forget the address again while it takes in what the ADD changed, so this is repeated.
    """
    os.write(fd, bytes(12) + b"\xff" * 6 + GUEST + b"\x88\xb5" + bytes(46))
    return GUEST.hex(":") in fdb(node)


def fdb(node: Node) -> str:
    appctl = ["ovs-appctl", "-t", f"{switch_of(node).dir}/vswitchd.ctl", "fdb/show", BRIDGE]
    return node.run(appctl).stdout


def keep_open(node: Node, tap: str) -> Callable[[], None]:
    with node.namespace.entered():
        (fd,) = tuntap.open_tap(tap)
    return lambda: os.close(fd)


def give_away(node: Node, tap: str) -> Callable[[], None]:
    with node.namespace.entered():
        (fd,) = tuntap.open_tap(tap)
        fcntl.ioctl(fd, tuntap.TUNSETGROUP, 80008)
        os.close(fd)
    return lambda: None


def widen(node: Node, tap: str) -> Callable[[], None]:
    node.run(["ip", "link", "set", tap, "mtu", "1400"])
    return lambda: None


@pytest.mark.parametrize("deed", [keep_open, give_away, widen])
def test_what_is_not_as_new_is_thrown_away(pooled: Pooled, deed: Callable[..., Any]) -> None:
    tap = tap_of(pooled.call("ADD"))
    end = deed(pooled.node, tap)
    pooled.call("DEL")
    end()
    assert tap not in pooled.taps() | pooled.ports()
    assert tap[3:] not in pooled.fill(SIZE - 1)


def test_a_pod_with_needs_of_its_own_goes_past_the_pool(pooled: Pooled) -> None:
    before = pooled.kits()
    args = "IgnoreUnknown=1;TC_REDIRECT_TAP_UID=70007"
    answer = pooled.node.call("ADD", pooled.conf(), "c1", pooled.pod, CNI_ARGS=args)
    assert tap_of(answer.expect()) == AttachmentKey("c1", "eth0").tap_link
    pooled.call("DEL")
    assert pooled.kits() == before


def test_a_burst_larger_than_the_pool(pooled: Pooled) -> None:
    names = [f"b{n}" for n in range(4 * SIZE)]
    with ThreadPoolExecutor(len(names)) as workers:
        results = list(workers.map(lambda name: pooled.call("ADD", name), names))
        taps = {tap_of(result) for result in results}
        assert len(taps) == len(names)
        assert taps <= pooled.ports()
        list(workers.map(lambda name: pooled.call("DEL", name), names))
    left = {f"vlt{kit}" for kit in pooled.fill()}
    assert pooled.taps() == left
    assert pooled.ports() == left


@pytest.mark.parametrize("harm", ["link", "port"])
def test_a_broken_kit_is_not_handed_out(pooled: Pooled, harm: str) -> None:
    for kit in pooled.kits():
        if harm == "link":
            pooled.node.run(["ip", "link", "del", f"vlt{kit}"])
        else:
            pooled.switch.vsctl("del-port", f"vlt{kit}")
    broken = pooled.kits()
    tap = tap_of(pooled.call("ADD"))
    assert tap == AttachmentKey("c1", "eth0").tap_link
    pooled.call("DEL")
    until(lambda: not broken & pooled.kits())
    assert not {f"vlt{kit}" for kit in broken} & (pooled.taps() | pooled.ports())
    assert not broken & pooled.fill()


def test_kits_go_with_their_bridge_and_come_again(pooled: Pooled) -> None:
    pooled.switch.vsctl("del-br", BRIDGE)
    until(lambda: not pooled.kits())
    assert not pooled.taps()
    until(lambda: "there is no bridge" in pooled.told()["error"])
    assert "no bridge" in pooled.node.run(pooled.node.ctl("pool")).stdout
    assert "cannot be filled: ovs.bridge: there is no bridge" in pooled.node.log.read_text()
    pooled.switch.add_bridge(BRIDGE)
    pooled.fill()
    assert pooled.told()["error"] == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"linux": {"bridge": "lbr0"}}, "pools.net.tap: only a port of Open vSwitch"),
        ({"ovs": {"bridge": BRIDGE}, "tap": {"name": "fc0"}}, "pools.net.tap: tap.name is one"),
    ],
)
def test_a_network_that_no_pool_makes_sense_for(
    pooled: Pooled, change: dict[str, Any], words: str
) -> None:
    conf = {key: value for key, value in pooled.conf().items() if key != "ovs"} | change
    pooled.node.call("STATUS", conf).expect()
    until(lambda: words in pooled.told()["error"] and not pooled.kits())
    assert not pooled.taps()


@pytest.mark.machine
def test_a_kit_of_vhost_user(pooled_dpdk: Pooled) -> None:
    (kit,) = pooled_dpdk.fill(1)
    result = pooled_dpdk.call("ADD", mode="vhostuser")
    first = result["interfaces"][0]
    path = f"{pooled_dpdk.node.run_dir}/vhostuser/{kit}"
    assert first["socketPath"] == f"{path}/sock"
    (ids,) = row(pooled_dpdk.node, "Interface", f"vlu{kit}", "external_ids")
    assert (ids[schema.CONTAINER], ids["attached-mac"]) == ("c1", first["mac"])
    pooled_dpdk.call("DEL", mode="vhostuser")
    assert f"vlu{kit}" not in pooled_dpdk.ports()
    assert not Path(path).exists()
    assert kit not in pooled_dpdk.fill(1)


@pytest.fixture
def pooled_dpdk() -> Iterator[Pooled]:
    if reason := switch.missing(dpdk=True):
        pytest.skip(reason)
    with Node("dpdk") as node:
        switch_of(node).add_bridge(BRIDGE)
        made = Pooled(node)
        made.start("{net: {vhostuser: {size: 1}}}")
        made.call("STATUS", mode="vhostuser")
        yield made
