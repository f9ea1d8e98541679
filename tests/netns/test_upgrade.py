"""vmlinkd is replaced under live pods: what an old one has made, today's checks, keeps and removes.

The old one is of a commit in this repository's history. All ways of `faultlab` are attached by it,
then it ends, and today's is started once in its run directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.netns.attach_ways import KATAS, KEY, POD, WAYS, Way, vlan_missing
from tests.netns.upgradekit import STAYS, Attachment, Kits, Upgrade, furnished, unpack
from tests.waits import until

SIZE = 6  # of a pool; three pods have a kit, and none is made anew before the end


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the old commit."""
    directory = tmp_path_factory.mktemp("old")
    unpack(directory)
    return directory


def groups() -> dict[str, list[Way]]:
    """The ways to attach, by the node that they share.

    A group that is named by its mode needs what the machine has once. Ways with a pool have a test
    of their own. Only one attachment can have a fixed address, and a way has several here; the old
    vmlinkd knows no guard.
    """
    found: dict[str, list[Way]] = {}
    for way in WAYS:
        mode = str(way.conf["mode"])
        uplink = "ovs" if way.switch else "linux"
        name = mode if mode in ("macvtap", "vhostuser") else uplink
        if not way.prepared and not {"args", "guard"} & way.conf.keys():
            found.setdefault(name, []).append(way)
    return found


GROUPS = groups()


@dataclass
class Upgraded:
    """All ways of a group after the restart, each once for every end that it can have.

    It ends by a DEL, by GC, by a DEL while no vmlinkd runs, or because vmlinkd ends before the ADD
    does. `untrue` is what the restart has changed of the others.
    """

    upgrade: Upgrade
    empty: frozenset[str]
    deleted: list[Attachment] = field(default_factory=list)
    collected: list[Attachment] = field(default_factory=list)
    queued: list[Attachment] = field(default_factory=list)
    cut: list[Attachment] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)

    def attach(self, way: Way, name: str) -> None:
        node = self.upgrade.node
        for kind in ("deleted", "collected", "queued", "cut"):
            getattr(self, kind).append(Attachment(node, way, f"{name}-{kind}"))

    def restart(self) -> None:
        self.upgrade.stop_old()
        for attachment in self.cut:
            attachment.cut()
        assert not [what for each in self.queued for what in each.delete()]
        self.upgrade.start_new()
        self.untrue = [w for each in (*self.deleted, *self.collected) for w in each.changes()]


@pytest.fixture(scope="module", params=GROUPS)
def upgraded(request: pytest.FixtureRequest, old: Path) -> Iterator[Upgraded]:
    ways = GROUPS[request.param]
    with furnished(ways[0].switch, old) as upgrade:
        made = Upgraded(upgrade, upgrade.node.contents())
        for number, way in enumerate(ways):
            if "vlan" not in way.conf.get("linux", {}) or not vlan_missing():
                made.attach(way, f"{KEY.container_id}-{number}")
        made.restart()
        yield made


def test_a_restart_changes_nothing(upgraded: Upgraded) -> None:
    assert not upgraded.untrue


def test_an_unfinished_add_is_undone_at_the_start(upgraded: Upgraded) -> None:
    assert not [what for each in upgraded.cut for what in each.remains()]


def test_a_del_that_came_meanwhile_is_done_at_the_start(upgraded: Upgraded) -> None:
    assert not [what for each in upgraded.queued for what in each.remains()]


def test_check_and_del(upgraded: Upgraded) -> None:
    wrong = [what for each in upgraded.deleted for what in each.check()]
    for each in upgraded.deleted:
        wrong += each.delete()
        wrong += each.remains()
    assert not wrong


def test_gc(upgraded: Upgraded) -> None:
    """The last one: it collects all that the others may have left."""
    assert not upgraded.upgrade.collect()
    assert not [what for each in upgraded.collected for what in each.remains()]
    assert upgraded.upgrade.node.contents() - STAYS == upgraded.empty - STAYS
    assert not list(Path("/tmp").glob(f"vhostuser_{KATAS}*"))
    assert not upgraded.upgrade.complaints()


@dataclass
class Pooled:
    """A pool that is full, and three pods that the old vmlinkd gave a kit of it."""

    upgrade: Upgrade
    way: Way
    pool: Kits
    empty: frozenset[str]
    pods: list[Attachment]

    def attach(self, name: str) -> Attachment:
        return Attachment(self.upgrade.node, self.way, f"{KEY.container_id}-{name}")

    def contents(self) -> frozenset[str]:
        """Of the node, without what belongs to a kit of the pool."""
        kits = self.pool.ids()
        found = self.upgrade.node.contents()
        return frozenset(what for what in found if not any(kit in what for kit in kits))


def kit_of(attachment: Attachment) -> str:
    """From the directory of its socket, or from the name of its tap."""
    own, *others = attachment.result["interfaces"]
    return Path(own["socketPath"]).parent.name if "socketPath" in own else others[0]["name"][3:]


@pytest.fixture(params=["tap", "vhostuser"])
def pooled(request: pytest.FixtureRequest, old: Path) -> Iterator[Pooled]:
    mode = request.param
    plain = next(way for way in WAYS if way.name.startswith(f"{mode}, ovs, "))
    way = replace(plain, conf=plain.conf | {"cniVersion": "1.1.0"})  # which tells of sockets
    pools = f"pools: {{net: {{{mode}: {{size: {SIZE}, refill_below: 1}}}}}}"
    with furnished(way.switch, old, pools) as upgrade:
        pool = Kits(upgrade.node, mode)
        # A pool is filled when its network is known.
        upgrade.node.call("STATUS", way.stdin(upgrade.node)).expect()
        pool.settled(SIZE)
        made = Pooled(upgrade, way, pool, frozenset(), [])
        made.empty = made.contents()
        made.pods += [made.attach(name) for name in ("deleted", "collected", "cut")]
        yield made


def test_a_pool_is_adopted(pooled: Pooled) -> None:
    upgrade, pool = pooled.upgrade, pooled.pool
    deleted, collected, cut = pooled.pods
    left, ports = pool.settled(SIZE - len(pooled.pods)), pool.ports()
    lost = ports.keys() & {f"vl{kind}{kit_of(cut)}" for kind in "tu"}
    assert len(lost) == 1
    upgrade.stop_old()
    cut.cut()
    looked = pool.stamp()
    upgrade.start_new()
    until(lambda: pool.stamp() != looked)
    assert pool.settled(len(left)) == left
    assert pool.ports() == {name: ports[name] for name in ports.keys() - lost}

    fresh = pooled.attach("fresh")
    assert kit_of(fresh) in left
    pods = (fresh, deleted, collected)
    assert not [what for pod in pods for what in pod.check()]
    assert not [what for pod in (fresh, deleted) for what in pod.delete()]
    assert not upgrade.collect()
    assert not [what for pod in (*pods, cut) for what in pod.remains()]
    # Not so a port of vhost-user: ovs-vswitchd may still talk to the guest that was there before.
    back = {kit_of(pod) for pod in pods} if pooled.way.conf["mode"] == "tap" else set()
    kits = left - {kit_of(fresh)} | back
    assert pool.settled(len(kits)) == kits
    assert {name[3:] for name in pool.ports()} == kits
    assert pooled.contents() == pooled.empty
    assert not upgrade.complaints()


def test_an_address_of_kube_ovn_stays_its_pods(old: Path) -> None:
    way = next(way for way in WAYS if "kubeovn" in way.conf)
    with furnished(way.switch, old) as upgrade:
        first = Attachment(upgrade.node, way, KEY.container_id)
        upgrade.stop_old()
        upgrade.start_new()
        conf, pod, args = way.stdin(upgrade.node), upgrade.node.pod(), POD.replace("pod", "other")
        refused = upgrade.node.call("ADD", conf, "other", pod, CNI_ARGS=args)
        assert (refused.code, "is still that of pod.ns" in refused.out["msg"]) == (11, True)
        assert not first.delete()
        upgrade.node.call("ADD", conf, "other", pod, CNI_ARGS=args).expect()
