"""Network namespaces without a name: they end with their last descriptor, whatever a test does."""

from __future__ import annotations

import ctypes
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from bench.testbed.slowness import SLOWNESS
from cni.kernel import rtnl_encode
from cni.kernel.netlink import Netlink, NetlinkError
from cni.kernel.netns import CLONE_NEWNET, Namespace, libc
from cni.kernel.rtnl_decode import LinkInfo

ETH_P_ALL = 0x0003

T = TypeVar("T")
Pair = tuple[Namespace, Netlink]  # the socket is bound to that namespace


def present(found: T | None) -> T:
    """What a lookup found. Fails if it found nothing."""
    assert found is not None, "expected to find something, found None"
    return found


def new_namespace() -> Namespace:
    made: list[Namespace | OSError] = []

    def work() -> None:
        if libc.unshare(CLONE_NEWNET) != 0:
            made.append(OSError(ctypes.get_errno(), "unshare"))
            return
        made.append(Namespace.open("/proc/thread-self/ns/net"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


@contextmanager
def namespaces(count: int) -> Iterator[list[Pair]]:
    """`count` new namespaces, each with a Netlink inside it."""
    pairs: list[Pair] = []
    try:
        for _ in range(count):
            ns = new_namespace()
            with ns.entered():
                pairs.append((ns, Netlink(timeout=5 * SLOWNESS)))
        yield pairs
    finally:
        for ns, netlink in pairs:
            netlink.close()
            ns.close()


def packet_socket(ns: Namespace, name: str) -> socket.socket:
    with ns.entered():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        sock.bind((name, ETH_P_ALL))
    sock.settimeout(2)
    return sock


def next_frame(sock: socket.socket, marker: bytes) -> tuple[bytes, int]:
    """The first frame that contains `marker`, and its VLAN tag, or 0 for none.

    The kernel strips the tag from the frame and passes it on as auxiliary data.
    """
    sock.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA
    while True:
        data, auxiliary, *_ = sock.recvmsg(2048, 256)
        if marker in data:
            tags = [raw for level, kind, raw in auxiliary if (level, kind) == (263, 8)]
            return data, int.from_bytes(tags[0][16:18], "little") if tags else 0


def open_descriptors() -> int:
    """How many file descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def qdiscs(namespace: Namespace, link: str) -> list[dict[str, Any]]:
    """The qdiscs of a link as tc(8) lists them."""
    command = ["tc", "-json", "qdisc", "show", "dev", link]
    with namespace.entered():
        done = subprocess.run(command, capture_output=True, check=True)
    listed = json.loads(done.stdout or "[]")
    assert isinstance(listed, list)
    return listed


def the_link(netlink: Netlink, name: str) -> LinkInfo:
    """The link, which must be there."""
    found = netlink.link(name)
    assert found, f"no link {name}"
    return found


def ifindex(netlink: Netlink, name: str) -> int:
    """Its ifindex."""
    found = netlink.index(name)
    assert found, f"no link {name}"
    return found


def first_error(netlink: Netlink, message: rtnl_encode.Message) -> NetlinkError | None:
    return netlink.attempt(message)[0]
