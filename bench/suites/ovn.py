"""ADD of a logical port of OVN beside what OVN alone needs for the same row.

The row alone is committed by a client of its own on a tap that is there: from the commit to
`ovn-installed`. All take turns in one run, each when OVN has nothing else to do. What comes from
the pool is on a node of its own, as kits are ports that a switch has to walk through.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path

from bench.report.results import Options, Results, Series, Task
from bench.testbed import ovn as ovns
from bench.testbed import pooled
from bench.testbed.node import Node
from bench.testbed.ovn import BRIDGE, Ovn
from cni.config.settings import Ovs
from cni.kernel import rtnl_encode, tuntap
from cni.kernel.netlink import Netlink
from cni.ovs import open_database
from cni.ovs.database import Database
from cni.ovs.port_ops import Add, Port, Remove
from cni.spec.types import AttachmentKey

BURST = 50
PRESENT = (0, 100)  # other pods of the node; a kubelet's default limit is 110
CALLERS = 16  # processes that fill the node at the same time
OURS = ("tap-ovn", "tap-ovn-pool")  # by node
ALONE = "OVN alone"
NETWORK = "ovn"
_OWNER = "bench"
_SECONDS = 30.0
_GROUP = 77  # IFLA_GROUP: the taps go by one request


def tasks(options: Options, results: Results, stack: ExitStack) -> list[Task]:
    """`stack` gives back what they make. Run them in one thread: daemons end with theirs."""
    if reason := ovns.missing():
        at: dict[str, int | str] = {"switch": "ovn", "parallel": 1}
        results.add(Series("attach", "add", "ms", OURS[0], "vmlink", at, note=reason))
        return []
    bench = OnOvn(results, stack)
    alone = options.rounds or (12 if options.quick else 60)
    many = options.rounds or (1 if options.quick else 5)
    found = []
    for present in PRESENT:
        found += [
            Task(f"OVN with {present} ports", 1 + present * 0.05, partial(bench.fill, present)),
            Task("one at a time on OVN", alone * 0.2, partial(bench.alone, alone)),
            Task(f"{BURST} at once on OVN", many * 3, partial(bench.burst, many)),
        ]
    return [*found, Task("giving back", 3, bench.give_back)]


class OnOvn:
    """Two nodes, one with a pool, and a logical port for each pod of a burst."""

    def __init__(self, results: Results, stack: ExitStack) -> None:
        self._results = results
        self._stack = stack.enter_context(ExitStack())
        self._present = 0

    def give_back(self) -> None:
        self._stack.close()

    def fill(self, present: int) -> None:
        """Attach pods until each node has so many, numbered after those of a burst."""
        for node in (0, 1):
            for verb in ("ADD", "DEL"):  # which tells the pool its network
                self._call(node, verb, 0)
            first = BURST + node * PRESENT[-1]
            numbers = range(first + self._present, first + present)
            with ThreadPoolExecutor(CALLERS) as callers:
                list(callers.map(partial(self._call, node, "ADD"), numbers))
        self._present = present
        self._round(1, Results(), "add")  # caches, first uses

    def alone(self, rounds: int) -> None:
        for _ in range(rounds):
            self._round(1, self._results, "add")

    def burst(self, rounds: int) -> None:
        for _ in range(rounds):
            self._round(BURST, self._results, "burst_add")

    def _round(self, count: int, results: Results, metric: str) -> None:
        """Milliseconds until the last of so many is installed."""
        at: dict[str, int | str] = {"switch": "ovn", "parallel": count}
        at["present"] = self._present
        for node, name in enumerate(OURS):
            ours = Series("attach", metric, "ms", name, "vmlink", at)
            results.add(ours, self._attach(node, count))
        results.add(Series("attach", metric, "ms", ALONE, "floor", at), self._commit(count))

    @cached_property
    def _ovn(self) -> Ovn:
        made = self._stack.enter_context(Ovn())
        made.add_switch("bench", {f"p{n}.bench": _mac(n) for n in range(BURST + 2 * PRESENT[-1])})
        made.nodes[0].start()
        pooled.start(made.nodes[1], NETWORK, BURST)
        return made

    @property
    def _node(self) -> Node:
        """Where rows are committed alone."""
        return self._ovn.nodes[0]

    @cached_property
    def _database(self) -> Database:
        assert self._node.switch
        database = open_database(Ovs(self._node.switch.db), _OWNER)
        self._stack.callback(database.close)
        database.look(_SECONDS)
        return database

    @cached_property
    def _pods(self) -> list[Path]:
        return [node.pod("ovn") for node in self._ovn.nodes]

    def _settle(self) -> None:
        """OVN, the switches and the pool have done what the call before left to do."""
        pooled.settle(self._ovn.nodes[1], NETWORK, BURST)
        self._ovn.nbctl("--wait=hv", "sync")

    def _attach(self, node: int, count: int) -> float:
        numbers = range(count)
        self._settle()
        with ThreadPoolExecutor(count) as callers:
            start = time.perf_counter()
            each = list(callers.map(partial(self._call, node, "ADD"), numbers))
            wall = (time.perf_counter() - start) * 1000
            list(callers.map(partial(self._call, node, "DEL"), numbers))
        return wall if count > 1 else each[0]

    def _call(self, node: int, verb: str, number: int) -> float:
        conf = {"cniVersion": "1.0.0", "name": NETWORK, "type": "vmlink", "mode": "tap"}
        ovs = {"bridge": BRIDGE, "ovn": True}
        args = f"K8S_POD_NAME=p{number};K8S_POD_NAMESPACE=bench"
        whole = {**conf, "mac": _mac(number), "ovs": ovs}
        made, pod = self._ovn.nodes[node], self._pods[node]
        answer = made.call(verb, whole, f"c{number}", pod, CNI_ARGS=args)
        answer.expect()
        return answer.ms

    def _commit(self, count: int) -> float:
        keys = [AttachmentKey(f"row{n}", "eth0") for n in range(count)]
        with self._taps(keys):
            self._settle()
            start = time.perf_counter()
            added = [self._database.submit(self._row(n, key)) for n, key in enumerate(keys)]
            for pending in added:
                pending.wait(_SECONDS, "not installed")
            wall = (time.perf_counter() - start) * 1000
            gone = [self._database.submit(Remove(_OWNER, key)) for key in keys]
            for pending in gone:
                pending.wait(_SECONDS, "not removed")
        return wall

    def _row(self, number: int, key: AttachmentKey) -> Add:
        ids = {"attached-mac": _mac(number), "iface-id": f"p{number}.bench"}
        ids["iface-status"] = "active"
        return Add(_OWNER, key, Port(BRIDGE, key.tap_link, external_ids=ids, ovn=True))

    @contextmanager
    def _taps(self, keys: list[AttachmentKey]) -> Iterator[None]:
        with self._node.namespace.entered(), Netlink() as netlink:
            for key in keys:
                index = tuntap.create_tap(key.tap_link, queues=1, owner=0, group=None)
                netlink.batch(rtnl_encode.set_link(index, mtu=ovns.MTU, group=_GROUP, up=True))
        try:
            yield
        finally:
            self._node.run(["ip", "link", "del", "group", str(_GROUP)])


def _mac(number: int) -> str:
    return f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
