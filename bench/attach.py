"""ADD, CHECK and DEL as whole processes, as a runtime calls them, beside other plugins.

The contenders take turns in one run, so that what else the machine does hits all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.node import CLIENT, PLUGINS, Node, give_back_on_sigterm

VERBS = ("ADD", "CHECK", "DEL")


@dataclass(frozen=True)
class Contender:
    """A plugin and the network that it is asked to attach to."""

    name: str
    plugin: Path
    conf: Mapping[str, Any]
    ms: dict[str, list[float]] = field(default_factory=lambda: {v: [] for v in VERBS})


def contenders(node: Node, redirects: Sequence[str]) -> list[Contender]:
    found: list[Contender] = []
    for engine in redirects:
        conf = _network(node, f"tc-{engine}", len(found) + 1, "vmlink")
        conf |= {"linux": {"bridge": "bench0", "gateway": True}, "redirect": engine}
        found.append(Contender(f"vmlink tc {engine}", CLIENT, conf))
    for kind, extra in (("bridge", {"bridge": "bench1", "isGateway": True}), ("ptp", {})):
        conf = _network(node, kind, len(found) + 1, kind) | extra
        found.append(Contender(f"{kind} (a plain veth)", PLUGINS / kind, conf))
    return found


def _network(node: Node, name: str, number: int, kind: str) -> dict[str, Any]:
    ipam = node.ipam(f"10.{100 + number}.0.0/16", routes=["0.0.0.0/0"])
    return {"cniVersion": "1.0.0", "name": f"bench-{name}", "type": kind, "ipam": ipam}


def measure(node: Node, found: Sequence[Contender], rounds: int) -> None:
    """One attachment of each contender after the other, `rounds` times."""
    for number in range(rounds):
        turn = number % len(found)
        for contender in [*found[turn:], *found[:turn]]:
            _once(node, contender, f"bench-{number}")


def _once(node: Node, contender: Contender, container: str) -> None:
    pod = node.pod()
    conf = dict(contender.conf)
    try:
        for verb in VERBS:
            answer = node.call(verb, conf, container, pod, plugin=contender.plugin)
            conf["prevResult"] = answer.expect() or conf["prevResult"]
            contender.ms[verb].append(answer.ms)
    finally:
        node.lab.drop(pod)


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help="per contender (default: 100)")
    parser.add_argument("--redirect", nargs="+", default=["auto"], help="engines of mode tc")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample")
    options = parser.parse_args()
    give_back_on_sigterm()
    with Node() as node:
        node.start()
        found = contenders(node, options.redirect)
        measure(node, found, 2)  # bridges, caches, first uses
        for contender in found:
            for samples in contender.ms.values():
                samples.clear()
        measure(node, found, options.rounds)
    _report(found)
    if options.json:
        options.json.write_text(json.dumps({c.name: c.ms for c in found}) + "\n")
    return 0


def _report(found: Sequence[Contender]) -> None:
    base = next(c for c in found if c.plugin.name == "bridge")
    print(f"{'ms, p50 / p90 (ratio to bridge)':<32}" + "".join(f"{v:<26}" for v in VERBS))
    for contender in found:
        cells = []
        for verb in VERBS:
            p50, p90 = _quantiles(contender.ms[verb])
            ratio = p50 / statistics.median(base.ms[verb])
            cells.append(f"{p50:6.2f} / {p90:6.2f} ({ratio:4.2f})")
        print(f"{contender.name:<32}" + "".join(f"{c:<26}" for c in cells))


def _quantiles(samples: Sequence[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(samples, n=10, method="inclusive")
    return statistics.median(samples), cuts[8]


if __name__ == "__main__":
    sys.exit(main())
