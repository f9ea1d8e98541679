"""ADD, CHECK and DEL as whole processes, as a runtime calls them, beside what people use now.

The contenders take turns in one run, so that disturbances of the machine hit all of them.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property, partial

from bench.contenders import peers
from bench.contenders.ovs_vsctl import OvsVsctl, wait_until_idle
from bench.contenders.plugins import BinTrue, Contender, debian, peer_plugin, series, vmlink
from bench.results import Results
from bench.suites import breakdown, kernel_alone
from bench.suites.growth import LinuxGrowth, OvsGrowth
from bench.suites.rounds import (
    call_at_once,
    measure_bursts,
    measure_in_turns,
    pods,
    turns,
    usable,
)
from bench.suites.scenario import Scenario, tasks_of
from bench.suites.task import Options, Task
from bench.testbed.attachments import ATTACHMENT_TYPES, AttachmentType

PARALLEL = (8, 32)
BURST = 50
DEFAULT = AttachmentType("tc", "linux")  # with the redirect that vmlink chooses itself


def tasks(options: Options, results: Results, stack: ExitStack) -> list[Task]:
    """The tasks of all scenarios but OVN's. Raises PeerError for a --peer that cannot be used."""
    return tasks_of(
        (
            LinuxScenario(options, results, stack),
            OvsScenario(options, results, stack),
            OvsGrowth(options, results, stack),
            LinuxGrowth(options, results, stack),
            DpdkScenario(options, results, stack),  # last: its poll mode driver takes a core
        )
    )


class LinuxScenario(Scenario):
    """Linux bridges, macvtap and chains, beside Debian's plugins and those of --peer.

    Raises PeerError.
    """

    def __init__(self, options: Options, results: Results, stack: ExitStack) -> None:
        super().__init__(options, results, stack)
        self._peers = peers.parse(options.peers)

    def tasks(self) -> list[Task]:
        bursts = [
            Task(f"{n} at once", self.bursts * n * 0.08, partial(self._measure_bursts, n))
            for n in PARALLEL
        ]
        limit = self.rounds * 0.005 + self.bursts * 0.5
        return [
            Task("one at a time", 1 + self.rounds * 0.4, self._measure),
            *bursts,
            Task(f"{BURST} DELs at once", self.bursts * 2.5, self._measure_del_burst),
            Task("where the time goes: tc", self.rounds * 0.01, self._measure_breakdown),
            Task("the kernel alone", limit, self._measure_kernel),
            Task("clean-up", 0.1, self.close),
        ]

    @cached_property
    def _contenders(self) -> list[Contender]:
        linux = (kind for kind in ATTACHMENT_TYPES if not kind.switch)
        kinds = self.available(DEFAULT, *linux, AttachmentType("veth", "linux"))
        subnets = iter(range(100, 256))
        plugins = [vmlink(kind, self.node, next(subnets), self.stack) for kind in kinds]
        plugins += [debian(kind, self.node, next(subnets)) for kind in ("bridge", "ptp")]
        plugins += [peer_plugin(peer, self.node, next(subnets)) for peer in self._peers]
        return [*usable(plugins, self.results, self.at(parallel=1)), BinTrue(self.node)]

    @cached_property
    def _main(self) -> list[Contender]:
        """The contenders that are also called many at once."""
        names = ("tc-linux", "bridge", "ptp", *(peer.type for peer in self._peers))
        return [contender for contender in self._contenders if contender.name in names]

    def _measure(self) -> None:
        at = self.at(parallel=1)
        measure_in_turns(self._contenders, 1, Results(), at)  # not counted: the bridges are new
        measure_in_turns(self._contenders, self.rounds, self.results, at)

    def _measure_bursts(self, parallel: int) -> None:
        measure_bursts(self, self._main, parallel)

    def _measure_del_burst(self) -> None:
        for contender in turns(self._main, self.bursts):
            with pods(contender, BURST) as attachments:
                call_at_once(attachments, "ADD", PARALLEL[0])
                wall = call_at_once(attachments, "DEL", BURST).wall
            at = self.at(parallel=BURST)
            self.results.add(series(contender, "burst_del", "ms", at), wall)

    def _measure_breakdown(self) -> None:
        tc = vmlink(DEFAULT, self.node, 99, self.stack)
        breakdown.measure(tc, self.rounds, self.results, self.at())

    def _measure_kernel(self) -> None:
        kernel_alone.measure(self.node, self.rounds, self.results, self.at(parallel=1))
        at = self.at(parallel=BURST)
        for _ in range(self.bursts):
            kernel_alone.measure_burst(self.node, BURST, self.results, at)


class OvsScenario(Scenario):
    """Open vSwitch with few ports: with the kernel's datapath where there is one."""

    switch = "ovs"

    def tasks(self) -> list[Task]:
        if not self._kinds:
            return []
        bursts = [
            Task(f"{n} at once on OVS", self.bursts * n * 0.14, partial(self._measure_bursts, n))
            for n in PARALLEL
        ]
        return [
            Task("one at a time on OVS", 1 + self.rounds * 0.1, self._measure),
            *bursts,
            Task("where the time goes: tap on OVS", self.rounds * 0.02, self._measure_breakdown),
            Task("clean-up", 0.1, self.close),
        ]

    @cached_property
    def _kinds(self) -> list[AttachmentType]:
        ovs = (kind for kind in ATTACHMENT_TYPES if kind.switch == self.switch)
        return self.available(*ovs, AttachmentType("veth", "ovs"))

    @cached_property
    def _contenders(self) -> list[Contender]:
        plugins: list[Contender] = [
            vmlink(kind, self.node, 100 + number, self.stack)
            for number, kind in enumerate(self._kinds)
        ]
        at = self.at(parallel=1)
        return usable([*plugins, OvsVsctl(self.node, "ovs0")], self.results, at)

    def _measure(self) -> None:
        settle = partial(wait_until_idle, self.node)
        measure_in_turns(self._contenders, self.rounds, self.results, self.at(parallel=1), settle)

    def _measure_bursts(self, parallel: int) -> None:
        main = [c for c in self._contenders if c.name in ("tap-ovs", "ovs-vsctl")]
        measure_bursts(self, main, parallel)

    def _measure_breakdown(self) -> None:
        tap = vmlink(AttachmentType("tap", "ovs"), self.node, 99, self.stack)
        breakdown.measure(tap, self.rounds, self.results, self.at())


class DpdkScenario(Scenario):
    """vhost-user ports of Open vSwitch with DPDK."""

    switch = "dpdk"

    def tasks(self) -> list[Task]:
        kinds = self.available(*(kind for kind in ATTACHMENT_TYPES if kind.switch == self.switch))
        tasks = [
            Task(f"{kind.name}, DPDK", 2 + self.rounds * 0.1, partial(self._measure, kind))
            for kind in kinds
        ]
        return [*tasks, Task("clean-up", 0.5, self.close)] if tasks else []

    def _measure(self, kind: AttachmentType) -> None:
        plugin = vmlink(kind, self.node, 100, self.stack)
        port = OvsVsctl(self.node, "ovs0", "ovs-vsctl vhost-user", vhostuser=True)
        at, settle = self.at(parallel=1), partial(wait_until_idle, self.node)
        contenders = usable([plugin, port], self.results, at)
        measure_in_turns(contenders, self.rounds, self.results, at, settle)
