"""How fast is what passes: every mode beside the bridge that it replaces, and the ceilings.

All contenders of a node are there at the same time and are measured in passes, each of which
begins with another one. Guests sleep while it is not their turn.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from bench.contenders.pairs import Bridged, Contender, Loopback, Plain, Vmlink, Wired
from bench.report.results import Options, Results, Task
from bench.suites.contest import Contest
from bench.suites.visit import Effort, Entry
from bench.testbed import switch
from bench.testbed.ways import WAYS
from cni.config.network import REDIRECTS

QUICK = Effort(passes=2, flow=0.3, flood=0.25, asked=1500)
FULL = Effort(passes=4, flow=1.0, flood=0.5, asked=5000)
ENGINE_TURNS = 10  # for one of the others, and shorter: the engines differ by little
BETWEEN_GUESTS = ("tc-linux-cls-bpf", "tap-ovs", "vhostuser-ovs", "bridge-tap-linux")


def tasks(options: Options, results: Results, stack: ExitStack) -> list[Task]:
    """Everything to do, in order; `stack` gives back what a Ctrl-C leaves."""
    effort = QUICK if options.quick else FULL
    if options.rounds:
        effort = replace(effort, passes=options.rounds)
    short = replace(
        effort,
        passes=effort.passes * ENGINE_TURNS,
        flood=effort.flood / 3,
        asked=effort.asked // ENGINE_TURNS,
    )
    first = Contest("" if switch.missing() else "userspace", results, stack)
    last = Contest("dpdk", results, stack)
    beside_poller = last.passes(_with_dpdk(), effort)
    return [
        first.begin(),
        *first.passes(_engines(), short),
        *first.passes(_without_dpdk(), effort),
        first.end(),
        *([last.begin(), *beside_poller, last.end()] if beside_poller else []),
    ]


def _engines() -> list[Entry]:
    engines = ["", *(engine for engine in REDIRECTS if engine != "auto")]
    return [Entry(Wired(e), {"path": "veth-veth"}, ("in",), ()) for e in engines]


def _without_dpdk() -> list[Entry]:
    found: list[Contender] = [Vmlink(way) for way in WAYS if way.switch != "dpdk"]
    found += [Bridged("linux"), Bridged("ovs"), Loopback(), Plain()]
    return [*map(Entry, found), *_between_guests(found)]


def _with_dpdk() -> list[Entry]:
    """The poller takes CPU from all that is measured, so the baseline is there once more."""
    found: list[Contender] = [Vmlink(way) for way in WAYS if way.switch == "dpdk"]
    found += [] if switch.missing(dpdk=True) else [Bridged("ovs")]
    at: dict[str, int | str] = {"switch": "dpdk"}
    return [*(Entry(one, at) for one in found), *_between_guests(found, **at)]


def _between_guests(found: list[Contender], **at: int | str) -> list[Entry]:
    chosen = [one for one in found if one.name in BETWEEN_GUESTS]
    return [
        Entry(one, {**at, "path": "guest-guest"}, ("in",), beside=Entry(one, at).name)
        for one in chosen
    ]
