"""Made-up results of a benchmark. They look real, and are the same in every run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bench.report.document import Document
from bench.results import Series


class Times(NamedTuple):
    """What a contender of the attach suite typically takes, in ms."""

    role: str
    add: float
    delete: float


ABOUT: dict[str, Any] = {
    "started": "2000-01-01T00:00:00Z",
    "seconds": 283.4,
    "command": "./run bench all --quick",
    "options": {"suites": ["attach", "datapath"], "quick": True, "rounds": 0, "peers": []},
    "interrupted": False,
    "failed": [],
    "not_run": [],
    "left_behind": [],
    "machine": {
        "cpu": "Made-up CPU <x86> & more",
        "cores": 2,
        "memory_mb": 24576,
        "virtualised_by": "KVM",
    },
    "kernel": "6.18.0",
    "versions": {"vmlink": "0.0", "commit": "0123456789ab", "dirty": False, "python": "3.11"},
    "accelerator": {"name": "tcg", "reason": "/dev/kvm cannot be opened here"},
}
ATTACH = {
    "tc-linux": Times("vmlink", 2.5, 1.9),
    "tc-linux-tcx": Times("vmlink", 24, 23),
    "tc-linux-cls-bpf": Times("vmlink", 2.5, 1.8),
    "tc-linux-mirred": Times("vmlink", 2.3, 1.8),
    "tc-chained": Times("vmlink", 2.2, 1.2),
    "tap-linux": Times("vmlink", 1.9, 1.6),
    "macvtap-master": Times("vmlink", 2.1, 1.7),
    "veth-linux": Times("vmlink", 2.0, 1.5),
    "bridge": Times("baseline", 7.3, 32),
    "ptp": Times("peer", 6.6, 33),
    "a-plugin-with-a-very-long-name-from-elsewhere": Times("peer", 140, 60),
    "kernel alone": Times("floor", 1.1, 1.2),
    "tc-ovs": Times("vmlink", 4.9, 2.9),
    "tap-ovs": Times("vmlink", 3.5, 2.1),
    "ovs-vsctl": Times("baseline", 6.2, 5.8),
}
# Each contender's role, and its throughput as a multiple of the baseline's.
DATAPATH = {
    "tc-linux-tcx": ("vmlink", 1.3),
    "tc-linux-mirred": ("vmlink", 1.25),
    "tap-linux": ("vmlink", 1.2),
    "macvtap-master": ("vmlink", 1.4),
    "vhostuser-ovs": ("vmlink", 0.8),
    "bridge-tap-linux": ("baseline", 1.0),
    "guest-loopback": ("ceiling", 2.9),
    "veth-linux": ("ceiling", 9.0),
}
THROUGHPUT = {"tcp_in": 2.1, "tcp_out": 1.7, "pps_in": 90.0, "pps_out": 70.0}
UNITS = {"tcp_in": "Gbit/s", "tcp_out": "Gbit/s", "pps_in": "kpps", "pps_out": "kpps"}
PARTS = {"client": 0.5, "queue": 0.12, "engine": 0.4, "ipam": 0.3, "veth": 0.7, "tap": 0.25}


@dataclass
class Attach:
    """Series of the attach suite, with samples that spread around what is typical."""

    rng: random.Random
    made: list[Series] = field(default_factory=list)

    def add(
        self,
        metric: str,
        unit: str,
        contender: str,
        role: str,
        typical: float,
        count: int,
        **at: int | str,
    ) -> None:
        samples = [typical * self.rng.lognormvariate(0, 0.12) for _ in range(count)]
        self.made.append(Series("attach", metric, unit, contender, role, at, samples))


def attach(rng: random.Random, n: int = 60) -> list[Series]:
    """The attach suite, with `n` samples of each call."""
    suite = Attach(rng)
    made, add = suite.made, suite.add
    for name, (role, added, gone) in ATTACH.items():
        add("add", "ms", name, role, added, n, parallel=1)
        add("del", "ms", name, role, gone, n, parallel=1)
        if role in ("vmlink", "baseline"):
            add("check", "ms", name, role, added * 0.6, n, parallel=1)
    for parallel in (8, 32):
        for name in ("tc-linux", "bridge", "ptp", "tap-ovs", "ovs-vsctl"):
            role, added, gone = ATTACH[name]
            add("add", "ms", name, role, added * parallel * 0.6, n, parallel=parallel)
            add("rate", "1/s", name, role, 1000 / added, 4, parallel=parallel)
    for name, slope in (("tc-linux", 0.0001), ("bridge", 0.0004)):
        role, added, gone = ATTACH[name]
        for there in (10, 100, 300, 1000):
            add("add", "ms", name, role, added * (1 + slope * there), 20, present=there)
    for name, slope in (("tap-ovs", 0.02), ("ovs-vsctl", 0.15)):
        role, added, gone = ATTACH[name]
        for there in (0, 100, 300, 500):
            add("add", "ms", name, role, added * (1 + slope * there), 20, present=there)
    for name, ms in (("tc-linux", 90.0), ("bridge", 1500.0)):
        add("burst_del", "ms", name, ATTACH[name].role, ms, 3, parallel=50)
    for name in ("tc-linux", "tap-ovs"):
        for verb in ("ADD", "DEL"):
            for part, ms in PARTS.items():
                add(f"part:{part}", "ms", name, "vmlink", ms, 15, verb=verb)
    add("memory", "MB", "tc-linux", "vmlink", 40, 1, present=10)
    add("memory", "MB", "tc-linux", "vmlink", 48, 1, present=1000)
    made.append(Series("attach", "idle_cpu", "ms/s", "tc-linux", "vmlink", {"present": 1000}, [0]))
    reason = "no huge pages"
    made.append(Series("attach", "add", "ms", "vhostuser-ovs", "vmlink", {}, note=reason))
    return made


def datapath(rng: random.Random, n: int = 5) -> list[Series]:
    """The datapath suite, with `n` samples of each throughput."""
    made: list[Series] = []
    for path in ("host-guest", "guest-guest"):
        for name, (role, times) in DATAPATH.items():
            for metric, typical in THROUGHPUT.items():
                for streams in (1, 4) if metric.startswith("tcp") else (1,):
                    at: dict[str, int | str] = {"path": path, "streams": streams}
                    samples = [typical * times * rng.gauss(1, 0.05) for _ in range(n)]
                    unit = UNITS[metric]
                    made.append(Series("datapath", metric, unit, name, role, at, samples))
            for metric, typical in (("rtt", 180.0), ("jitter", 12.0)):
                samples = [typical / times * rng.lognormvariate(0, 0.2) for _ in range(400)]
                made.append(Series("datapath", metric, "µs", name, role, {"path": path}, samples))
    return made


def document(suites: Sequence[str] = ("attach", "datapath"), **about: Any) -> Document:
    """The results of a whole run; `about` changes what is told of it."""
    rng = random.Random(1)
    made = [
        each for suite in suites for each in {"attach": attach, "datapath": datapath}[suite](rng)
    ]
    return Document({**ABOUT, **about}, made)
