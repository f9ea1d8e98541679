"""What cannot be passed: the kernel's own time for the netlink work of mode tc on a Linux bridge.

The same messages in the same batches as the steps of cni/modes send them, from this process; what
is not a system call is done while the clock stands.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.node import Node
from cni import redirect, rtmsg, tuntap
from cni.modes.links import silent
from cni.netlink import Netlink
from cni.netns import Namespace
from cni.reaper import Reaper

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
    """A bridge in the node's namespace; the calling thread works there."""

    def __init__(self, node: Node) -> None:
        self._home = node.namespace
        self._reaper = Reaper()
        with self._home.entered():
            self._host = Netlink()
            self._host.batch(rtmsg.new_bridge(BRIDGE, up=True))
        self._bridge = self._host.index(BRIDGE) or 0
        self._host.batch(rtmsg.add_address(self._bridge, f"{_GATEWAY}/16"))

    def add(self, pod: Namespace) -> float:
        """Milliseconds of the kernel's for one ADD. Raises NetlinkError."""
        clock = Clock()
        with self._home.entered():
            self._veth(pod, clock)
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

    def _veth(self, pod: Namespace, clock: Clock) -> None:
        veth = rtmsg.new_veth(
            HOST_LINK,
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
            index = self._host.index(HOST_LINK) or 0
        up = [*silent(index, MTU), rtmsg.set_link(index, up=True)]
        with clock.running():
            self._host.batch(*up)

    def _tap(self, pod: Namespace, netlink: Netlink, clock: Clock) -> int:
        with clock.running(), pod.entered_from(self._home.fd):
            index = tuntap.create_tap(TAP, owner=0)
        named = rtmsg.set_link(index, mtu=MTU, mac=_TAP_MAC, group=GROUP, addrgenmode_none=True)
        with clock.running():
            netlink.batch(named, rtmsg.set_link(index, up=True))
        return index

    def _configure(self, netlink: Netlink, clock: Clock) -> None:
        with clock.running():
            index = netlink.index(POD_LINK) or 0
        messages = [*silent(index, MTU), rtmsg.set_link(index, up=True)]
        messages.append(rtmsg.add_address(index, _ADDRESS))
        messages.append(rtmsg.add_route(_ROUTE, gateway=_GATEWAY, index=index))
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
        self._host.batch(rtmsg.del_link(self._bridge))
        self._host.close()
        self._reaper.close()


def measure(node: Node, rounds: int) -> tuple[list[float], list[float]]:
    """Of each ADD and DEL, in ms."""
    added, gone = [], []
    floor = Floor(node)
    try:
        for _ in range(WARM_UP + rounds):
            path: Path = node.pod()
            with Namespace.open(str(path)) as pod:
                added.append(floor.add(pod))
                gone.append(floor.delete(pod))
            node.lab.drop(path)
    finally:
        floor.close()
    return added[WARM_UP:], gone[WARM_UP:]
