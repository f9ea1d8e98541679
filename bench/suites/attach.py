"""ADD, CHECK and DEL as whole processes, as a runtime calls them, beside what people use now.

The contenders take turns in one run, so that what else the machine does hits all of them.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property, partial

from bench.contenders import peers
from bench.contenders.plugins import Contender, Idle, Vsctl, debian, peer, series, vmlink
from bench.report.results import Options, Results, Series, Task
from bench.suites import floor, growth, stages
from bench.suites.growth import settle
from bench.suites.rounds import Part, able, at_once, bursts, in_turns, pods, turns
from bench.testbed.ways import WAYS, Way

PARALLEL = (8, 32)
BURST = 50
DEFAULT = Way("tc", "linux")  # with the redirect that vmlink chooses itself


def tasks(options: Options, results: Results, stack: ExitStack) -> list[Task]:
    """`stack` gives back what they make. Run them in one thread: daemons end with theirs.

    Raises PeerError.
    """
    given = peers.parse(options.peers)
    parts = (
        OnLinux(options, results, stack, given),
        OnOvs(options, results, stack),
        growth.OnOvs(options, results, stack),
        growth.OnLinux(options, results, stack),
        OnDpdk(options, results, stack),  # whose poller keeps a core for itself
    )
    return [task for part in parts for task in part.tasks()]


def shown(part: Part, *ways: Way) -> list[Way]:
    """Those that can be measured here; of the others the results tell why not."""
    found = []
    for way in ways:
        if reason := way.missing():
            at = part.at(parallel=1)
            part.results.add(Series("attach", "add", "ms", way.name, "vmlink", at, note=reason))
        else:
            found.append(way)
    return found


class OnLinux(Part):
    """Linux bridges, macvtap and chains; with Debian's plugins and those of --peer."""

    def __init__(
        self,
        options: Options,
        results: Results,
        stack: ExitStack,
        given: list[peers.Peer],
    ) -> None:
        super().__init__(options, results, stack)
        self._given = given

    def tasks(self) -> list[Task]:
        many = [
            Task(f"{n} at once", self.bursts * n * 0.08, partial(self._at_once, n))
            for n in PARALLEL
        ]
        return [
            Task("one at a time", 1 + self.rounds * 0.4, self._alone),
            *many,
            Task(f"{BURST} DELs at once", self.bursts * 2.5, self._burst),
            Task("where the time goes: tc", self.rounds * 0.01, self._stages),
            Task("the kernel alone", self.rounds * 0.005 + self.bursts * 0.5, self._floor),
            Task("giving back", 0.1, self.give_back),
        ]

    @cached_property
    def _contenders(self) -> list[Contender]:
        ways = shown(self, DEFAULT, *(w for w in WAYS if not w.switch), Way("veth", "linux"))
        subnets = iter(range(100, 256))
        found = [vmlink(way, self.node, next(subnets), self.stack) for way in ways]
        found += [debian(kind, self.node, next(subnets)) for kind in ("bridge", "ptp")]
        found += [peer(given, self.node, next(subnets)) for given in self._given]
        return [*able(found, self.results, self.at(parallel=1)), Idle(self.node)]

    @cached_property
    def _main(self) -> list[Contender]:
        """What stands in for the others where many are called at once."""
        names = ("tc-linux", "bridge", "ptp", *(given.type for given in self._given))
        return [contender for contender in self._contenders if contender.name in names]

    def _alone(self) -> None:
        at = self.at(parallel=1)
        in_turns(self._contenders, 1, Results(), at)  # once more: the bridges are new
        in_turns(self._contenders, self.rounds, self.results, at)

    def _at_once(self, parallel: int) -> None:
        bursts(self, self._main, parallel)

    def _burst(self) -> None:
        for contender in turns(self._main, self.bursts):
            with pods(contender, BURST) as made:
                at_once(made, "ADD", PARALLEL[0])
                wall = at_once(made, "DEL", BURST).wall
            told = series(contender, "burst_del", "ms", self.at(parallel=BURST))
            self.results.add(told, wall)

    def _stages(self) -> None:
        ours = vmlink(DEFAULT, self.node, 99, self.stack)
        stages.measure(ours, self.rounds, self.results, self.at())

    def _floor(self) -> None:
        floor.measure(self.node, self.rounds, self.results, self.at(parallel=1))
        for _ in range(self.bursts):
            floor.burst(self.node, BURST, self.results, self.at(parallel=BURST))


class OnOvs(Part):
    """Open vSwitch with its userspace datapath and few ports."""

    switch = "userspace"

    def tasks(self) -> list[Task]:
        if not self._ways:
            return []
        many = [
            Task(f"{n} at once on OVS", self.bursts * n * 0.14, partial(self._at_once, n))
            for n in PARALLEL
        ]
        return [
            Task("one at a time on OVS", 1 + self.rounds * 0.1, self._alone),
            *many,
            Task("where the time goes: tap on OVS", self.rounds * 0.02, self._stages),
            Task("giving back", 0.1, self.give_back),
        ]

    @cached_property
    def _ways(self) -> list[Way]:
        ours = (way for way in WAYS if way.switch == self.switch)
        return shown(self, *ours, Way("veth", "ovs"))

    @cached_property
    def _contenders(self) -> list[Contender]:
        found: list[Contender] = [
            vmlink(way, self.node, 100 + number, self.stack)
            for number, way in enumerate(self._ways)
        ]
        return able([*found, Vsctl(self.node, "ovs0")], self.results, self.at(parallel=1))

    def _alone(self) -> None:
        quiet = partial(settle, self.node)
        in_turns(self._contenders, self.rounds, self.results, self.at(parallel=1), quiet)

    def _at_once(self, parallel: int) -> None:
        main = [c for c in self._contenders if c.name in ("tap-ovs", "ovs-vsctl")]
        bursts(self, main, parallel)

    def _stages(self) -> None:
        tap = vmlink(Way("tap", "ovs"), self.node, 99, self.stack)
        stages.measure(tap, self.rounds, self.results, self.at())


class OnDpdk(Part):
    """vhost-user ports of a DPDK switch."""

    switch = "dpdk"

    def tasks(self) -> list[Task]:
        ways = shown(self, *(way for way in WAYS if way.switch == self.switch))
        found = [
            Task(f"{way.name}, DPDK", 2 + self.rounds * 0.1, partial(self._alone, way))
            for way in ways
        ]
        return [*found, Task("giving back", 0.5, self.give_back)] if found else []

    def _alone(self, way: Way) -> None:
        ours = vmlink(way, self.node, 100, self.stack)
        theirs = Vsctl(self.node, "ovs0", "ovs-vsctl vhost-user", vhostuser=True)
        at = self.at(parallel=1)
        found = able([ours, theirs], self.results, at)
        in_turns(found, self.rounds, self.results, at, partial(settle, self.node))
