"""Announcements of a pod's addresses by its namespace's kernel, from a thread of their own.

With arp_notify and ndisc_notify the kernel sends a gratuitous ARP and an unsolicited neighbour
advertisement when a link's MAC address is set, also to what it is. That takes no raw socket, which
would need CAP_NET_RAW and whose end waits for an RCU grace period. Sources:
Documentation/networking/ip-sysctl.rst; RFC 5227, section 3; RFC 4861, section 7.2.6.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from cni.errors import VmlinkError
from cni.kernel import rtnl_encode, sysctl
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace

log = logging.getLogger("vmlink")

# Seconds after the ADD. The first are for a port that forwards as soon as the kernel's link watch
# has run; the last one for a switch that was slower.
DELAYS = (0.02, 0.2, 1.2)


@dataclass(frozen=True)
class _Job:
    pod: Namespace
    ifname: str
    mac: str
    neighbours: tuple[tuple[str, str], ...]


class Announcer:
    """Tells a pod's neighbours its MAC address. The thread starts with the first one."""

    def __init__(self) -> None:
        self._new: SimpleQueue[_Job] = SimpleQueue()
        self._started = threading.Lock()

    def announce(
        self, pod: Namespace, ifname: str, mac: str, neighbours: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Announce the interface's addresses a few times from now on. Never waits or raises.

        The interface has the MAC `mac` already, and its permanent `neighbours` (address and MAC)
        stay: the kernel forgets a link's with its MAC. The namespace lives for as long.
        """
        with suppress(OSError):
            kept = Namespace.from_fd(os.dup(pod.fd), pod.path)
            self._new.put(_Job(kept, ifname, mac, neighbours))
            if self._started.acquire(blocking=False):
                threading.Thread(target=self._run, name="vmlink-announcer", daemon=True).start()

    def _run(self) -> None:
        due: list[tuple[float, int, int, _Job]] = []
        numbers = itertools.count()
        while True:
            wait = max(0.0, due[0][0] - time.monotonic()) if due else None
            with suppress(Empty):
                job = self._new.get(timeout=wait)
                heapq.heappush(due, (time.monotonic() + DELAYS[0], next(numbers), 0, job))
                continue
            _, number, turn, job = heapq.heappop(due)
            if _announce(job) and turn + 1 < len(DELAYS):
                later = time.monotonic() + DELAYS[turn + 1] - DELAYS[turn]
                heapq.heappush(due, (later, number, turn + 1, job))
            else:
                job.pod.close()


def _announce(job: _Job) -> bool:
    """Return whether the interface is still there."""
    try:
        with job.pod.entered(), Netlink() as netlink:
            link = netlink.link(job.ifname)
            if link is None or link.mac != job.mac:
                return False
            sysctl.write_if_there(f"ipv4/conf/{job.ifname}/arp_notify", "1")
            sysctl.write_if_there(f"ipv6/conf/{job.ifname}/ndisc_notify", "1")
            kept = (rtnl_encode.add_neighbour(link.index, *entry) for entry in job.neighbours)
            netlink.batch(rtnl_encode.set_link(link.index, mac=job.mac), *kept)
    except (VmlinkError, OSError) as e:
        log.info("%s: cannot announce its addresses: %s", job.ifname, e)
        return False
    return True
