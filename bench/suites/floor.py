"""What cannot be passed: the kernel's own time for the netlink work of mode tc on a Linux bridge.

The same messages in the same batches as the steps of cni/modes send them, from this process; what
is not a system call is done while the clock stands.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.report.results import Results, Series
from bench.testbed.node import Node
from cni.kernel import redirect, rtnl_encode, tuntap
from cni.kernel.link_deleter import LinkDeleter
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from cni.modes.steps.links import no_link_local

WARM_UP = 2
BRIDGE, HOST_LINK, POD_LINK, TAP, GROUP, MTU = "floor0", "floorveth", "eth0", "floortap", 4711, 1500
_GATEWAY, _ADDRESS, _ROUTE = "10.99.0.1", "10.99.0.2/16", "0.0.0.0/0"
_HOST_MAC, _POD_MAC, _TAP_MAC = "fe:00:00:00:00:01", "02:00:00:00:00:01", "02:00:00:00:00:02"


class Clock:
    """Runs only inside `with clock.running()`."""

    def __init__(self) -> None:
        self.ms = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.ms += (time.perf_counter() - start) * 1000


class Floor:
    """On a `bridge` in the node's namespace that is there, or on one of its own; the calling thread
    works there. `parallel` deletions may be in the kernel at once, whose tails are long.
    """

    def __init__(self, node: Node, bridge: str = "", parallel: int = 8) -> None:
        self._home = node.namespace
        self._reaper = LinkDeleter(parallel)
        with self._home.entered():
            self._host = Netlink()
        if not bridge:
            self._host.batch(rtnl_encode.new_bridge(BRIDGE, up=True))
            self._host.batch(
                rtnl_encode.add_address(self._host.index(BRIDGE) or 0, f"{_GATEWAY}/16")
            )
        self._bridge = self._host.index(bridge or BRIDGE) or 0
        self._own = not bridge

    def add(self, pod: Namespace, number: int = 0) -> float:
        """Milliseconds of the kernel's for one ADD. Raises NetlinkError."""
        clock = Clock()
        with self._home.entered():
            self._veth(pod, f"{HOST_LINK}{number}", clock)
            with clock.running(), pod.entered_from(self._home.fd):
                netlink = Netlink()
            with netlink:
                tap = self._tap(pod, netlink, clock)
                self._configure(netlink, clock)
                with clock.running():
                    interface = netlink.index(POD_LINK) or 0
                    with pod.entered_from(self._home.fd):
                        redirect.attach("cls_bpf", netlink, interface, tap)
        return clock.ms

    def _veth(self, pod: Namespace, name: str, clock: Clock) -> None:
        veth = rtnl_encode.new_veth(
            name,
            POD_LINK,
            mac=_HOST_MAC,
            peer_mac=_POD_MAC,
            mtu=MTU,
            peer_ns_fd=pod.fd,
            master=self._bridge,
            peer_group=GROUP,
            queues=1,
        )
        with clock.running():
            self._host.batch(veth)
            index = self._host.index(name) or 0
        up = [*no_link_local(index, MTU), rtnl_encode.set_link(index, up=True)]
        with clock.running():
            self._host.batch(*up)

    def _tap(self, pod: Namespace, netlink: Netlink, clock: Clock) -> int:
        with clock.running(), pod.entered_from(self._home.fd):
            index = tuntap.create_tap(TAP, owner=0)
        named = rtnl_encode.set_link(
            index, mtu=MTU, mac=_TAP_MAC, group=GROUP, addrgenmode_none=True
        )
        with clock.running():
            netlink.batch(named, rtnl_encode.set_link(index, up=True))
        return index

    def _configure(self, netlink: Netlink, clock: Clock) -> None:
        with clock.running():
            index = netlink.index(POD_LINK) or 0
        messages = [*no_link_local(index, MTU), rtnl_encode.set_link(index, up=True)]
        messages.append(rtnl_encode.add_address(index, _ADDRESS))
        messages.append(rtnl_encode.add_route(_ROUTE, gateway=_GATEWAY, index=index))
        with clock.running():
            netlink.batch(*messages)

    def delete(self, pod: Namespace) -> float:
        """Milliseconds until the kernel has announced that the links of `add` are gone."""
        with self._home.entered():
            with pod.entered_from(self._home.fd), Netlink() as netlink:
                indexes = [netlink.index(name) or 0 for name in (POD_LINK, TAP)]
            start = time.perf_counter()
            self._reaper.delete(pod, GROUP, indexes, 10)
            return (time.perf_counter() - start) * 1000

    def close(self) -> None:
        if self._own:
            self._host.batch(rtnl_encode.del_link(self._bridge))
        self._host.close()
        self._reaper.close()


def _series(metric: str, at: Mapping[str, int | str]) -> Series:
    return Series("attach", metric, "ms", "kernel alone", "floor", at)


def burst(node: Node, count: int, results: Results, at: Mapping[str, int | str]) -> None:
    """Until the links of `count` attachments are gone, deleted all at once."""
    with ExitStack() as stack:
        floor = Floor(node, parallel=count)
        stack.callback(floor.close)
        made = []
        for number in range(count):
            path = node.pod()
            stack.callback(node.lab.drop, path)
            made.append(stack.enter_context(Namespace.open(str(path))))
            floor.add(made[-1], number)
        with ThreadPoolExecutor(count) as pool:
            start = time.perf_counter()
            for _ in pool.map(floor.delete, made):
                pass  # an error is raised here
            wall = (time.perf_counter() - start) * 1000
        results.add(_series("burst_del", at), wall)


def measure(
    node: Node, rounds: int, results: Results, at: Mapping[str, int | str], bridge: str = ""
) -> None:
    """Each ADD and DEL."""
    added, gone = [], []
    floor = Floor(node, bridge)
    try:
        for _ in range(WARM_UP + rounds):
            path: Path = node.pod()
            with Namespace.open(str(path)) as pod:
                added.append(floor.add(pod))
                gone.append(floor.delete(pod))
            node.lab.drop(path)
    finally:
        floor.close()
    results.add(_series("add", at), *added[WARM_UP:])
    results.add(_series("del", at), *gone[WARM_UP:])
