"""A node whose vmlinkd has a pool of prepared ports for one network, in mode tap."""

from __future__ import annotations

import time

from bench.testbed.node import BIN, Node
from bench.testbed.slowness import SLOWNESS
from cni.daemon.pool_store import read_json

FILL_SECONDS = 20 * SLOWNESS


def start(node: Node, network: str, size: int) -> None:
    """Start vmlinkd with a pool of `size` ports, which refills it after each ADD."""
    settings = node.lab.dir / "vmlinkd.yaml"
    settings.write_text(f"pools: {{{network}: {{tap: {{size: {size}, refill_below: {size}}}}}}}")
    node.start((str(BIN / "vmlinkd"), "--config", str(settings)))


def wait_until_full(node: Node, network: str, size: int) -> None:
    """Wait until `size` ports are ready. Raises AssertionError after FILL_SECONDS."""
    path = node.run_dir / "pool" / f"{network}@tap" / "pool.json"
    end = time.monotonic() + FILL_SECONDS
    while (state := read_json(path)).get("ready", 0) < size:
        assert time.monotonic() < end, f"the pool has not {size} ports in time: {state}"
        time.sleep(0.01)
