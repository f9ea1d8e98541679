"""Two links in a pod, wired together by a redirect, with a frame at each far end."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cni.kernel import redirect, rtnl_encode
from tests.netns.nslib import (
    Pair,
    next_frame,
    packet_socket,
    present,
    qdiscs,
)

BROADCAST = b"\xff" * 6
SOURCE = bytes.fromhex("020000000001")


def frame(payload: bytes, tag: int = 0) -> bytes:
    inner = struct.pack("!H", 0x88B5) + payload.ljust(60, b".")
    if tag:
        inner = struct.pack("!HH", 0x8100, tag) + inner
    return BROADCAST + SOURCE + inner


class Wire:
    """Two veths with one end of each in the pod, to be redirected between."""

    def __init__(self, pod: Pair, outside: Pair) -> None:
        self.ns, self.netlink = pod
        self.outside_ns, outside_netlink = outside
        self.netlink.batch(
            rtnl_encode.new_veth("near", "far", peer_ns_fd=self.outside_ns.fd, up=True),
            rtnl_encode.new_veth("guest", "vm", peer_ns_fd=self.outside_ns.fd, up=True),
        )
        self.near = present(self.netlink.index("near"))
        self.guest = present(self.netlink.index("guest"))
        outside_netlink.batch(
            *(
                rtnl_encode.set_link(present(outside_netlink.index(x)), up=True)
                for x in ("far", "vm")
            )
        )

    @contextmanager
    def sockets(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        with (
            packet_socket(self.outside_ns, "far") as far,
            packet_socket(self.outside_ns, "vm") as vm,
        ):
            yield far, vm

    def passes(self, tag: int = 0) -> list[int]:
        """Both ways; returns the tags that arrived."""
        with self.sockets() as (far, vm):
            tags = []
            for sender, receiver, words in ((far, vm, b"to the vm"), (vm, far, b"from the vm")):
                sender.send(frame(words, tag))
                tags.append(next_frame(receiver, words)[1] & 0xFFF)
            return tags

    def blocked(self) -> bool:
        with self.sockets() as (far, vm):
            for sender, receiver in ((far, vm), (vm, far)):
                sender.send(frame(b"lost"))
                receiver.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    next_frame(receiver, b"lost")
        return True

    def attach(self, engine: str) -> None:
        with self.ns.entered():
            redirect.attach(engine, self.netlink, self.near, self.guest)

    def detach(self, engine: str) -> None:
        with self.ns.entered():
            for index in (self.near, self.guest):
                redirect.detach(engine, self.netlink, index)

    def check(self, engine: str) -> None:
        with self.ns.entered():
            redirect.check(engine, self.netlink, self.near, self.guest)

    def clsact(self, index: int) -> list[dict[str, Any]]:
        return [x for x in self.qdiscs(index) if x["kind"] == "clsact"]

    def qdiscs(self, index: int) -> list[dict[str, Any]]:
        return qdiscs(self.ns, present(self.netlink.link(index=index)).name)
