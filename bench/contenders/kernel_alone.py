"""The kernel's own time for the netlink work of mode tc on a Linux bridge: a limit for vmlink.

The same messages are sent in the same batches as by the steps in cni/modes, from this process.
Only system calls are timed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.testbed.node import Node
from cni.kernel import redirect, rtnl_encode, tuntap
from cni.kernel.link_deleter import LinkDeleter
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from cni.kernel.route_encode import add_route
from cni.modes.steps.links import no_link_local

BRIDGE, HOST_LINK, POD_LINK, TAP, GROUP, MTU = "floor0", "floorveth", "eth0", "floortap", 4711, 1500
_GATEWAY, _ADDRESS, _ROUTE = "10.99.0.1", "10.99.0.2/16", "0.0.0.0/0"
_HOST_MAC, _POD_MAC, _TAP_MAC = "fe:00:00:00:00:01", "02:00:00:00:00:01", "02:00:00:00:00:02"


class Stopwatch:
    """Adds up the milliseconds spent inside `with stopwatch.running()`."""

    def __init__(self) -> None:
        self.ms = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of this block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.ms += (time.perf_counter() - start) * 1000


class KernelAlone:
    """Attaches pods to a `bridge` in the node's namespace, or to one that it makes.

    Up to `parallel` deletions are in the kernel at once, since each keeps its caller waiting.
    """

    def __init__(self, node: Node, bridge: str = "", parallel: int = 8) -> None:
        self._home = node.namespace
        self._deleter = LinkDeleter(parallel)
        with self._home.entered():
            self._host = Netlink()
        if not bridge:
            self._host.batch(rtnl_encode.new_bridge(BRIDGE, up=True))
            self._host.batch(
                rtnl_encode.add_address(self._host.index(BRIDGE) or 0, f"{_GATEWAY}/16")
            )
        self._bridge = self._host.index(bridge or BRIDGE) or 0
        self._made_bridge = not bridge

    def add(self, pod: Namespace, number: int = 0) -> float:
        """Attach a pod; returns the kernel's milliseconds. Raises NetlinkError."""
        watch = Stopwatch()
        with self._home.entered():
            self._make_veth(pod, f"{HOST_LINK}{number}", watch)
            with watch.running(), pod.entered_from(self._home.fd):
                netlink = Netlink()
            with netlink:
                tap = self._make_tap(pod, netlink, watch)
                self._configure(netlink, watch)
                with watch.running():
                    interface = netlink.index(POD_LINK) or 0
                    with pod.entered_from(self._home.fd):
                        redirect.attach("cls_bpf", netlink, interface, tap)
        return watch.ms

    def _make_veth(self, pod: Namespace, name: str, watch: Stopwatch) -> None:
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
        with watch.running():
            self._host.batch(veth)
            index = self._host.index(name) or 0
        up = [*no_link_local(index, MTU), rtnl_encode.set_link(index, up=True)]
        with watch.running():
            self._host.batch(*up)

    def _make_tap(self, pod: Namespace, netlink: Netlink, watch: Stopwatch) -> int:
        with watch.running(), pod.entered_from(self._home.fd):
            index = tuntap.create_tap(TAP, owner=0)
        settings = rtnl_encode.set_link(
            index, mtu=MTU, mac=_TAP_MAC, group=GROUP, addrgenmode_none=True
        )
        with watch.running():
            netlink.batch(settings, rtnl_encode.set_link(index, up=True))
        return index

    def _configure(self, netlink: Netlink, watch: Stopwatch) -> None:
        with watch.running():
            index = netlink.index(POD_LINK) or 0
        messages = [*no_link_local(index, MTU), rtnl_encode.set_link(index, up=True)]
        messages.append(rtnl_encode.add_address(index, _ADDRESS))
        messages.append(add_route(_ROUTE, gateway=_GATEWAY, index=index))
        with watch.running():
            netlink.batch(*messages)

    def delete(self, pod: Namespace) -> float:
        """Delete the links that `add` made; returns milliseconds until the kernel announces it."""
        with self._home.entered():
            with pod.entered_from(self._home.fd), Netlink() as netlink:
                indexes = [netlink.index(name) or 0 for name in (POD_LINK, TAP)]
            start = time.perf_counter()
            self._deleter.delete(pod, GROUP, indexes, 10)
            return (time.perf_counter() - start) * 1000

    def close(self) -> None:
        """Remove the bridge if it made one, and end its threads."""
        if self._made_bridge:
            self._host.batch(rtnl_encode.del_link(self._bridge))
        self._host.close()
        self._deleter.close()
