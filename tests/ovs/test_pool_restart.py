"""The pool over restarts of vmlinkd and of the switch: what is kept, and what is cleared away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.testbed.node import Node
from bench.testbed.switch import Datapath
from tests.ovs.ovskit import BRIDGE, switch_of, switched
from tests.ovs.poolkit import SIZE, Pooled, tap_of
from tests.ovs.test_attachments import row
from tests.waits import until


@pytest.fixture(scope="module")
def idle(datapath: Datapath) -> Iterator[Node]:
    with switched(datapath) as node:
        yield node


@pytest.fixture
def restarted(idle: Node) -> Iterator[Pooled]:
    """A full pool for a single test, which may stop and start vmlinkd."""
    made = Pooled(idle)
    made.start()
    made.call("STATUS")
    made.fill()
    yield made
    made.restart("{}")
    until(lambda: not made.taps() | made.ports())
    made.node.stop()
    idle.lab.drop(made.pod)


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
    pooled.fill()  # without waiting for an ADD


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


def test_the_database_goes_away_and_returns(fragile: Node) -> None:
    pooled = Pooled(fragile)
    pooled.start()
    pooled.call("STATUS")
    before = pooled.fill()
    pooled.switch.kill_ovsdb()
    answer = pooled.node.call("STATUS", pooled.conf())
    assert answer.code == 50
    pooled.switch.start_ovsdb()
    until(lambda: pooled.node.call("STATUS", pooled.conf()).code == 0)
    assert pooled.fill() == before
    assert tap_of(pooled.call("ADD"))[3:] in before
    pooled.call("DEL")


def test_a_stop_while_kits_are_made_leaves_none(fragile: Node) -> None:
    pooled = Pooled(fragile)
    switch_of(fragile).kill_vswitchd()
    pooled.start()
    pooled.call("STATUS")
    until(lambda: len(pooled.kits()) == len(pooled.ports()) == SIZE)
    assert fragile.stop() == 0
    assert not pooled.taps() | pooled.ports() | pooled.kits()
