"""Measure what the kernel alone needs for the work of mode tc on a Linux bridge."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from bench.contenders.kernel_alone import KernelAlone
from bench.results import Results, Series
from bench.testbed.node import Node
from cni.kernel.netns import Namespace

WARM_UP = 2  # rounds that are not counted


def measure(
    node: Node, rounds: int, results: Results, at: Mapping[str, int | str], bridge: str = ""
) -> None:
    """Measure ADD and DEL of one pod after the other, on `bridge` or on a new one."""
    added, deleted = [], []
    kernel = KernelAlone(node, bridge)
    try:
        for _ in range(WARM_UP + rounds):
            path: Path = node.pod()
            with Namespace.open(str(path)) as pod:
                added.append(kernel.add(pod))
                deleted.append(kernel.delete(pod))
            node.lab.drop(path)
    finally:
        kernel.close()
    results.add(_series("add", at), *added[WARM_UP:])
    results.add(_series("del", at), *deleted[WARM_UP:])


def measure_burst(node: Node, count: int, results: Results, at: Mapping[str, int | str]) -> None:
    """Measure the time until the links of `count` pods are gone, deleted all at once."""
    with ExitStack() as stack:
        kernel = KernelAlone(node, parallel=count)
        stack.callback(kernel.close)
        pods = []
        for number in range(count):
            path = node.pod()
            stack.callback(node.lab.drop, path)
            pods.append(stack.enter_context(Namespace.open(str(path))))
            kernel.add(pods[-1], number)
        with ThreadPoolExecutor(count) as pool:
            start = time.perf_counter()
            list(pool.map(kernel.delete, pods))
            wall = (time.perf_counter() - start) * 1000
        results.add(_series("burst_del", at), wall)


def _series(metric: str, at: Mapping[str, int | str]) -> Series:
    return Series("attach", metric, "ms", "kernel alone", "floor", at)
