"""Traffic through every type of attachment, beside the bridge that it replaces, and limits.

All datapaths of a node exist at the same time and are measured in passes, each of which begins
with another one. Guests are stopped while others are measured.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from bench.contenders.datapaths import (
    BridgeAndTap,
    Datapath,
    GuestLoopback,
    TwoVeths,
    VethPod,
    VmlinkGuest,
)
from bench.results import Results
from bench.suites.datapath_metrics import Effort, Measurement
from bench.suites.datapath_node import DatapathNode
from bench.suites.task import Options, Task
from bench.testbed import switch
from bench.testbed.attachments import ATTACHMENT_TYPES
from cni.config.network import REDIRECTS

QUICK = Effort(passes=2, tcp_seconds=0.3, udp_seconds=0.25, round_trips=1500)
FULL = Effort(passes=4, tcp_seconds=1.0, udp_seconds=0.5, round_trips=5000)
REDIRECT_PASSES = 10  # for one of the others, and shorter ones: redirects differ by little
BETWEEN_GUESTS = ("tc-linux-cls-bpf", "tap-ovs", "vhostuser-ovs", "bridge-tap-linux")


def tasks(options: Options, results: Results, stack: ExitStack) -> list[Task]:
    """The tasks of one node without DPDK, and of one with it, if this machine has it."""
    effort = QUICK if options.quick else FULL
    if options.rounds:
        effort = replace(effort, passes=options.rounds)
    short = replace(
        effort,
        passes=effort.passes * REDIRECT_PASSES,
        udp_seconds=effort.udp_seconds / 3,
        round_trips=effort.round_trips // REDIRECT_PASSES,
    )
    first = DatapathNode("" if switch.missing() else "ovs", results, stack)
    last = DatapathNode("dpdk", results, stack)
    with_dpdk = last.measure_tasks(_with_dpdk(), effort)
    return [
        first.start_task(),
        *first.measure_tasks(_redirects(), short),
        *first.measure_tasks(_without_dpdk(), effort),
        first.end_task(),
        *([last.start_task(), *with_dpdk, last.end_task()] if with_dpdk else []),
    ]


def _redirects() -> list[Measurement]:
    engines = ["", *(engine for engine in REDIRECTS if engine != "auto")]
    return [Measurement(TwoVeths(e), {"path": "veth-veth"}, ("in",), ()) for e in engines]


def _without_dpdk() -> list[Measurement]:
    paths: list[Datapath] = [VmlinkGuest(k) for k in ATTACHMENT_TYPES if k.switch != "dpdk"]
    paths += [BridgeAndTap("linux"), BridgeAndTap("ovs"), GuestLoopback(), VethPod()]
    return [*map(Measurement, paths), *_between_guests(paths)]


def _with_dpdk() -> list[Measurement]:
    """The poll mode driver takes CPU from all that is measured, so the baseline is repeated."""
    paths: list[Datapath] = [VmlinkGuest(k) for k in ATTACHMENT_TYPES if k.switch == "dpdk"]
    paths += [] if switch.missing(dpdk=True) else [BridgeAndTap("ovs")]
    at: dict[str, int | str] = {"switch": "dpdk"}
    return [*(Measurement(path, at) for path in paths), *_between_guests(paths, **at)]


def _between_guests(paths: list[Datapath], **at: int | str) -> list[Measurement]:
    guests = {**at, "path": "guest-guest"}
    return [
        Measurement(path, guests, ("in",), sender=Measurement(path, at).name)
        for path in paths
        if path.name in BETWEEN_GUESTS
    ]
