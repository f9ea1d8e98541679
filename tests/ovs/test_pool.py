"""The pool: kits made ahead, bound by an ADD, given back as new, and never one that is not."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bench.testbed import switch
from bench.testbed.node import Node
from cni.kernel import tuntap
from cni.ovs import schema
from cni.spec.types import POOL, AttachmentKey
from tests.ovs.ovskit import BRIDGE, switched
from tests.ovs.poolkit import SIZE, Pooled
from tests.ovs.test_attachments import links, row
from tests.waits import until

GUEST = bytes.fromhex("020000000777")


@pytest.fixture(scope="module")
def started() -> Iterator[Pooled]:
    with switched() as node:
        made = Pooled(node)
        made.start()
        yield made


@pytest.fixture
def pooled(started: Pooled) -> Pooled:
    """With a full pool of the plain network."""
    started.call("STATUS")
    until(lambda: started.told().get("ready") == len(started.kits()) > 0)
    taken = [f"taken{n}" for n in range(len(started.kits()) % SIZE)]  # the last is a reason to fill
    for name in taken:
        started.call("ADD", name)
    started.fill()
    for name in taken:
        started.call("DEL", name)
    return started


@pytest.fixture(scope="module")
def idle() -> Iterator[Node]:
    with switched() as node:
        yield node


@pytest.fixture
def restarted(idle: Node) -> Iterator[Pooled]:
    """As `pooled`, for one test, which may stop and start vmlinkd."""
    made = Pooled(idle)
    made.start()
    made.call("STATUS")
    made.fill()
    yield made
    made.restart("{}")
    until(lambda: not made.taps() | made.ports())
    made.node.stop()
    idle.lab.drop(made.pod)


def tap_of(result: dict[str, Any]) -> str:
    return str(result["interfaces"][1]["name"])


def everything(node: Node, kit: str) -> list[Any]:
    """What the switch and the kernel tell of a kit, without what counts frames."""
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


def test_a_limit_towards_the_pod_comes_and_goes(pooled: Pooled) -> None:
    limit = {"ingressRate": 8_000_000, "ingressBurst": 1_000_000}
    tap = tap_of(pooled.call("ADD", runtimeConfig={"bandwidth": limit}))
    assert len(row(pooled.node, "Port", tap, "qos")[0]) == 2
    until(lambda: "htb" in pooled.node.run(["tc", "qdisc", "show", "dev", tap]).stdout)
    pooled.call("DEL")
    assert tap[3:] in pooled.fill()
    assert "QoS" not in {what.split()[0] for what in pooled.node.switch.rows()}
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
    """The switch may forget once more while it comes to what the ADD changed."""
    os.write(fd, bytes(12) + b"\xff" * 6 + GUEST + b"\x88\xb5" + bytes(46))
    return GUEST.hex(":") in fdb(node)


def fdb(node: Node) -> str:
    appctl = ["ovs-appctl", "-t", f"{node.switch.dir}/vswitchd.ctl", "fdb/show", BRIDGE]
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
            pooled.node.switch.vsctl("del-port", f"vlt{kit}")
    broken = pooled.kits()
    tap = tap_of(pooled.call("ADD"))
    assert tap == AttachmentKey("c1", "eth0").tap_link
    pooled.call("DEL")
    until(lambda: not broken & pooled.kits())
    assert not {f"vlt{kit}" for kit in broken} & (pooled.taps() | pooled.ports())
    assert not broken & pooled.fill()


def test_a_restart_adopts_what_passes(restarted: Pooled) -> None:
    pooled = restarted
    before = pooled.kits()
    tap = tap_of(pooled.call("ADD"))
    broken = sorted(before - {tap[3:]})[0]
    pooled.node.stop()
    pooled.node.run(["ip", "link", "set", f"vlt{broken}", "down"])
    pooled.start()
    assert pooled.fill(1) == before - {tap[3:], broken}
    assert f"vlt{broken}" not in pooled.taps() | pooled.ports()
    pooled.call("DEL")
    assert pooled.fill(2) == before - {broken}
    pooled.restart(f"{{net: {{tap: {{size: {SIZE}, refill_below: {SIZE}}}}}}}")
    pooled.fill()  # before there is an ADD


def test_a_lost_record_and_lost_kits(restarted: Pooled) -> None:
    pooled = restarted
    tap = tap_of(pooled.call("ADD"))
    for path in (pooled.node.run_dir / "state").glob("*.json"):
        path.unlink()
    pooled.call("DEL")
    assert tap not in pooled.taps() | pooled.ports()
    other = tap_of(pooled.call("ADD"))
    lost = {f"vlt{kit}" for kit in pooled.kits()} | {other}
    pooled.node.stop()
    for path in [*pooled.node.run_dir.glob("pool/*/*"), *pooled.node.run_dir.glob("state/*")]:
        path.unlink()
    pooled.start()
    until(lambda: not lost & (pooled.taps() | pooled.ports()))
    pooled.call("DEL")


def test_another_configuration_makes_other_kits(restarted: Pooled) -> None:
    pooled = restarted
    before = pooled.kits()
    pooled.call("STATUS", ovs={"bridge": BRIDGE, "vlan": 7})
    until(lambda: not before & pooled.kits())
    for kit in pooled.fill():
        assert row(pooled.node, "Port", f"vlt{kit}", "tag") == [7]
    pooled.restart("{}")
    until(lambda: not pooled.taps() | pooled.ports())
    assert pooled.told() == {}
    assert not list((pooled.node.run_dir / "pool").iterdir())


def test_kits_go_with_their_bridge_and_come_again(pooled: Pooled) -> None:
    pooled.node.switch.vsctl("del-br", BRIDGE)
    until(lambda: not pooled.kits())
    assert not pooled.taps()
    until(lambda: "there is no bridge" in pooled.told()["error"])
    assert "no bridge" in pooled.node.run(pooled.node.ctl("pool")).stdout
    assert "cannot be filled: ovs.bridge: there is no bridge" in pooled.node.log.read_text()
    pooled.node.switch.add_bridge(BRIDGE)
    pooled.fill()
    assert pooled.told()["error"] == ""


def test_the_database_goes_away_and_returns(fragile: Node) -> None:
    pooled = Pooled(fragile)
    pooled.start()
    pooled.call("STATUS")
    before = pooled.fill()
    pooled.node.switch.kill_ovsdb()
    answer = pooled.node.call("STATUS", pooled.conf())
    assert answer.code == 50
    pooled.node.switch.start_ovsdb()
    until(lambda: pooled.node.call("STATUS", pooled.conf()).code == 0)
    assert pooled.fill() == before
    assert tap_of(pooled.call("ADD"))[3:] in before
    pooled.call("DEL")


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


def test_a_stop_while_kits_are_made_leaves_none(fragile: Node) -> None:
    pooled = Pooled(fragile)
    fragile.switch.kill_vswitchd()
    pooled.start()
    pooled.call("STATUS")
    until(lambda: len(pooled.kits()) == len(pooled.ports()) == SIZE)
    assert fragile.stop() == 0
    assert not pooled.taps() | pooled.ports() | pooled.kits()


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
    assert not os.path.exists(path)
    assert kit not in pooled_dpdk.fill(1)


@pytest.fixture
def pooled_dpdk() -> Iterator[Pooled]:
    if reason := switch.missing(dpdk=True):
        pytest.skip(reason)
    with Node("dpdk") as node:
        node.switch.add_bridge(BRIDGE)
        made = Pooled(node)
        made.start("{net: {vhostuser: {size: 1}}}")
        made.call("STATUS", mode="vhostuser")
        yield made
