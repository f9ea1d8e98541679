"""ovsdb-server dies and comes back while twenty containers come and go."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.testbed.node import Node
from tests.ovs.ovskit import BRIDGE, switch_of
from tests.ovs.test_attachments import config

LOOPS, SECONDS, OUTAGES = 20, 8.0, 2


def test_every_call_ends_well_or_with_try_again_and_nothing_remains(fragile: Node) -> None:
    fragile.start()
    before = fragile.contents()
    pods = [fragile.pod() for _ in range(LOOPS)]
    end = time.monotonic() + SECONDS
    with ThreadPoolExecutor(LOOPS) as loops:
        running = [loops.submit(attach_and_detach, fragile, n, p, end) for n, p in enumerate(pods)]
        for _ in range(OUTAGES):
            time.sleep(1)
            switch_of(fragile).kill_ovsdb()
            time.sleep(0.5)
            switch_of(fragile).start_ovsdb()
    codes = sum((each.result() for each in running), Counter())
    assert {code for _, code in codes} <= {0, 11}, codes
    assert codes["ADD", 0] > LOOPS
    assert switch_of(fragile).vsctl("list-ports", BRIDGE).split() == []
    assert fragile.contents() == before
    for pod in pods:
        fragile.lab.drop(pod)


def attach_and_detach(node: Node, n: int, pod: Path, end: float) -> Counter[tuple[str, int]]:
    """As a runtime does: after each ADD, failed or not, DEL until the DEL succeeds."""
    codes: Counter[tuple[str, int]] = Counter()
    conf = config(node, ("tap", "tc", "veth")[n % 3])
    while time.monotonic() < end:
        codes["ADD", node.call("ADD", conf, f"c{n}", pod).code] += 1
        while code := node.call("DEL", conf, f"c{n}", pod).code:
            codes["DEL", code] += 1
            threading.Event().wait(0.05)
    return codes
