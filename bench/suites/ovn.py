"""ADD of a logical port of OVN, beside what OVN alone needs for the same row.

For the row alone, this process commits it on an existing tap and waits until `ovn-installed`. All
contenders take turns, each when OVN is idle. The pool is on a node of its own, since its waiting
ports make a switch slower.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path

from bench.results import Results, Series
from bench.suites.task import Options, Task
from bench.testbed import ovn as ovn_testbed
from bench.testbed import pool
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
PRESENT = (0, 100)  # other pods on the node; kubelet's default limit is 110
CALLERS = 16  # processes that fill the node at the same time
VMLINK = ("tap-ovn", "tap-ovn-pool")  # the contender on each node
ROW_ALONE = "OVN alone"
NETWORK = "ovn"
_OWNER = "bench"
_SECONDS = 30.0
_GROUP = 77  # IFLA_GROUP: one request deletes all taps


def tasks(options: Options, results: Results, stack: ExitStack) -> list[Task]:
    """The tasks with OVN; none, and a series that says why, when it cannot run here."""
    if reason := ovn_testbed.missing():
        at: dict[str, int | str] = {"switch": "ovn", "parallel": 1}
        results.add(Series("attach", "add", "ms", VMLINK[0], "vmlink", at, note=reason))
        return []
    scenario = OvnScenario(results, stack)
    rounds = options.rounds or (12 if options.quick else 60)
    bursts = options.rounds or (1 if options.quick else 5)
    measurements = []
    for present in PRESENT:
        fill = partial(scenario.fill, present)
        one_by_one = partial(scenario.measure, 1, "add", rounds)
        at_once = partial(scenario.measure, BURST, "burst_add", bursts)
        measurements += [
            Task(f"OVN with {present} ports", 1 + present * 0.05, fill),
            Task("one at a time on OVN", rounds * 0.2, one_by_one),
            Task(f"{BURST} at once on OVN", bursts * 3, at_once),
        ]
    return [*measurements, Task("clean-up", 3, scenario.close)]


class OvnScenario:
    """Two nodes, the second with a pool, and a logical port for each pod of a burst.

    `close` removes what it made and may be called again.
    """

    def __init__(self, results: Results, stack: ExitStack) -> None:
        self._results = results
        self._stack = stack.enter_context(ExitStack())
        self._present = 0

    def close(self) -> None:
        """Remove the nodes and OVN."""
        self._stack.close()

    def fill(self, present: int) -> None:
        """Attach pods until each node has `present`; their numbers follow those of a burst."""
        for node in (0, 1):
            for verb in ("ADD", "DEL"):  # shows vmlinkd the network that the pool is for
                self._call(node, verb, 0)
            first = BURST + node * PRESENT[-1]
            numbers = range(first + self._present, first + present)
            with ThreadPoolExecutor(CALLERS) as callers:
                list(callers.map(partial(self._call, node, "ADD"), numbers))
        self._present = present
        self._measure_once(1, Results(), "add")  # not counted: caches are cold

    def measure(self, count: int, metric: str, rounds: int) -> None:
        """Measure `count` ADDs at once, in so many rounds."""
        for _ in range(rounds):
            self._measure_once(count, self._results, metric)

    def _measure_once(self, count: int, results: Results, metric: str) -> None:
        at: dict[str, int | str] = {"switch": "ovn", "parallel": count}
        at["present"] = self._present
        for node, name in enumerate(VMLINK):
            series = Series("attach", metric, "ms", name, "vmlink", at)
            results.add(series, self._attach(node, count))
        results.add(Series("attach", metric, "ms", ROW_ALONE, "floor", at), self._commit(count))

    @cached_property
    def _ovn(self) -> Ovn:
        ovn = self._stack.enter_context(Ovn())
        ports = {f"p{n}.bench": _mac(n) for n in range(BURST + 2 * PRESENT[-1])}
        ovn.add_switch("bench", ports)
        ovn.nodes[0].start()
        pool.start(ovn.nodes[1], NETWORK, BURST)
        return ovn

    @property
    def _node(self) -> Node:
        """The node on which rows are committed alone."""
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
        """Wait until the pool is full, and OVN and the switches are idle."""
        pool.wait_until_full(self._ovn.nodes[1], NETWORK, BURST)
        self._ovn.nbctl("--wait=hv", "sync")

    def _attach(self, node: int, count: int) -> float:
        """Attach pods at once and detach them; returns ms until the last ADD has ended."""
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
        whole = {**conf, "mac": _mac(number), "ovs": {"bridge": BRIDGE, "ovn": True}}
        args = f"K8S_POD_NAME=p{number};K8S_POD_NAMESPACE=bench"
        pod = self._pods[node]
        answer = self._ovn.nodes[node].call(verb, whole, f"c{number}", pod, CNI_ARGS=args)
        answer.expect()
        return answer.ms

    def _commit(self, count: int) -> float:
        """Commit rows at once and remove them; returns ms until the last is installed."""
        keys = [AttachmentKey(f"row{n}", "eth0") for n in range(count)]
        with self._taps(keys):
            self._settle()
            start = time.perf_counter()
            added = [self._database.submit(self._row(n, key)) for n, key in enumerate(keys)]
            for pending in added:
                pending.wait(_SECONDS, "not installed")
            wall = (time.perf_counter() - start) * 1000
            removed = [self._database.submit(Remove(_OWNER, key)) for key in keys]
            for pending in removed:
                pending.wait(_SECONDS, "not removed")
        return wall

    def _row(self, number: int, key: AttachmentKey) -> Add:
        ids = {"attached-mac": _mac(number), "iface-id": f"p{number}.bench"}
        ids["iface-status"] = "active"
        return Add(_OWNER, key, Port(BRIDGE, key.tap_link, external_ids=ids, ovn=True))

    @contextmanager
    def _taps(self, keys: list[AttachmentKey]) -> Iterator[None]:
        mtu = ovn_testbed.MTU
        with self._node.namespace.entered(), Netlink() as netlink:
            for key in keys:
                index = tuntap.create_tap(key.tap_link, queues=1, owner=0, group=None)
                netlink.batch(rtnl_encode.set_link(index, mtu=mtu, group=_GROUP, up=True))
        try:
            yield
        finally:
            self._node.run(["ip", "link", "del", "group", str(_GROUP)])


def _mac(number: int) -> str:
    return f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
