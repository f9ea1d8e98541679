"""./run demo: vmlink's main job, once in every mode that this kernel supports."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from bench.demo import modes, ovn
from bench.progress import StatusLine
from bench.testbed import guest, snapshot
from bench.testbed.node import exit_on_sigterm
from cni.plugins.table import columns


def main() -> int:
    """Run the demo and print its table.

    Returns the exit status: 1 when a row failed or something was left behind, else 0.
    """
    options = _options()
    exit_on_sigterm()
    snapshot.adopt_orphans()
    before = snapshot.take()
    status = StatusLine()
    status.show(f"guests run by {guest.accelerator()}: {guest.accelerator_reason()}")
    rows: list[modes.Row | ovn.Row] = []
    rows += (
        ovn.rows(options.seconds, status) if options.ovn else modes.rows(options.seconds, status)
    )
    left = snapshot.left_behind(before)
    status.end()
    head = ovn.HEAD if options.ovn else modes.HEAD
    for line in columns([head, *(row.cells() for row in rows)]):
        print(line)
    for what in left:
        print(f"left behind: {what}")
    if options.json:
        content = {"modes": [asdict(row) for row in rows], "left_behind": left}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if not left and all(row.ok or row.skipped for row in rows) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run demo", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON too")
    parser.add_argument("--seconds", type=float, default=2, help="for each iperf3 (default: 2)")
    parser.add_argument("--ovn", action="store_true", help="guests on two nodes of an OVN instead")
    return parser.parse_args()
