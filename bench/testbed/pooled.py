"""A node whose vmlinkd has a pool of one network, and when that is full."""

from __future__ import annotations

import time

from bench.testbed.node import BIN, Node
from cni.daemon.pool_store import read_json

PATIENCE = 20  # seconds, for the pool to be filled


def start(node: Node, network: str, kits: int) -> None:
    """Vmlinkd with so many kits of mode tap, each of which is made anew when it is taken."""
    settings = node.lab.dir / "vmlinkd.yaml"
    settings.write_text(f"pools: {{{network}: {{tap: {{size: {kits}, refill_below: {kits}}}}}}}")
    node.start((str(BIN / "vmlinkd"), "--config", str(settings)))


def settle(node: Node, network: str, kits: int) -> None:
    """Until all of them are ready."""
    path = node.run_dir / "pool" / f"{network}@tap" / "pool.json"
    end = time.monotonic() + PATIENCE
    while (told := read_json(path)).get("ready", 0) < kits:
        assert time.monotonic() < end, f"the pool is not filled: {told}"
        time.sleep(0.01)
