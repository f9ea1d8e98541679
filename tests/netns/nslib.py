"""Namespaces without a name: they end with their last descriptor, whatever a test does."""

import ctypes
import os
import socket
import threading
from contextlib import contextmanager

from cni.kernel.netlink import Netlink
from cni.kernel.netns import CLONE_NEWNET, Namespace, libc

ETH_P_ALL = 0x0003


def new_namespace() -> Namespace:
    made = []

    def work():
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
def namespaces(count):
    """`count` pairs of a Namespace and a Netlink in it."""
    pairs = []
    try:
        for _ in range(count):
            ns = new_namespace()
            with ns.entered():
                pairs.append((ns, Netlink(timeout=5)))
        yield pairs
    finally:
        for ns, netlink in pairs:
            netlink.close()
            ns.close()


def packet_socket(ns, name):
    with ns.entered():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        sock.bind((name, ETH_P_ALL))
    sock.settimeout(2)
    return sock


def next_frame(sock, marker):
    """The first frame with `marker`, and the VLAN tag that the kernel keeps beside it (or 0)."""
    sock.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA
    while True:
        data, auxiliary, *_ = sock.recvmsg(2048, 256)
        if marker in data:
            tags = [raw for level, kind, raw in auxiliary if (level, kind) == (263, 8)]
            return data, int.from_bytes(tags[0][16:18], "little") if tags else 0


def own_links() -> set[str]:
    return set(os.listdir("/sys/class/net"))
