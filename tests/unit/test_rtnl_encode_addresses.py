"""The encoders of addresses, routes and neighbours against pyroute2's, byte for byte."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg as routemsg

from cni.kernel import rtnl_encode
from cni.kernel.netlink_message import Message, encode
from cni.kernel.route_encode import add_route
from tests.unit.purekit import CREATE_EXCL, pyroute

MAC = "02:00:00:00:00:01"
Attrs = list[tuple[str, Any]]


def address(family: int, prefix: int, attrs: Attrs, **more: int) -> bytes:
    head = {"family": family, "prefixlen": prefix, "index": 3, **more}
    return pyroute(ifaddrmsg, 20, CREATE_EXCL, head, attrs)


def both(ip: str) -> Attrs:
    return [("IFA_ADDRESS", ip), ("IFA_LOCAL", ip)]


V4, V6 = socket.AF_INET, socket.AF_INET6
ADDRESSES = {
    "IPv4": (
        rtnl_encode.add_address(3, "10.1.2.3/24"),
        address(V4, 24, [*both("10.1.2.3"), ("IFA_BROADCAST", "10.1.2.255")]),
    ),
    "IPv4 /31": (
        rtnl_encode.add_address(3, "10.1.2.3/31"),
        address(V4, 31, both("10.1.2.3")),
    ),
    "IPv4 /32": (
        rtnl_encode.add_address(3, "10.1.2.3/32"),
        address(V4, 32, both("10.1.2.3")),
    ),
    "IPv6": (
        rtnl_encode.add_address(3, "fd00::3/64"),
        address(V6, 64, both("fd00::3"), flags=2),
    ),
}


CREATE, APPEND = 0x401, 0x800


def route(family: int, prefix: int, attrs: Attrs, how: int = CREATE_EXCL, **head: int) -> bytes:
    values = {"family": family, "dst_len": prefix, "table": 254, "proto": 4, "scope": 0, "type": 1}
    return pyroute(routemsg, 24, how, values | head, attrs)


ROUTES = {
    "default": (
        add_route("0.0.0.0/0", gateway="10.0.0.1", index=3),
        route(V4, 0, [("RTA_OIF", 3), ("RTA_GATEWAY", "10.0.0.1")]),
    ),
    "IPv6 default": (
        add_route("::/0", gateway="fd00::1", index=3),
        route(V6, 0, [("RTA_OIF", 3), ("RTA_GATEWAY", "fd00::1")]),
    ),
    "on the link": (
        add_route("10.9.0.0/16", index=3),
        route(V4, 16, [("RTA_DST", "10.9.0.0"), ("RTA_OIF", 3)], scope=253),
    ),
    "IPv6 on the link": (
        add_route("fd01::/48", index=3),
        route(V6, 48, [("RTA_DST", "fd01::"), ("RTA_OIF", 3)]),
    ),
    "everything": (
        add_route(
            "10.9.0.0/16",
            gateway="169.254.1.1",
            index=3,
            table=1000,
            priority=50,
            mtu=1400,
            advmss=1360,
            scope=200,
        ),
        route(
            V4,
            16,
            [
                ("RTA_DST", "10.9.0.0"),
                ("RTA_OIF", 3),
                ("RTA_GATEWAY", "169.254.1.1"),
                ("RTA_PRIORITY", 50),
                ("RTA_METRICS", {"attrs": [("RTAX_MTU", 1400), ("RTAX_ADVMSS", 1360)]}),
                ("RTA_TABLE", 1000),
            ],
            table=0,
            scope=200,
        ),
    ),
    "before others": (
        add_route("0.0.0.0/0", gateway="10.0.0.1", index=3, place="first"),
        route(V4, 0, [("RTA_OIF", 3), ("RTA_GATEWAY", "10.0.0.1")], how=CREATE),
    ),
    "behind others": (
        add_route("0.0.0.0/0", gateway="10.0.0.1", index=3, place="last"),
        route(V4, 0, [("RTA_OIF", 3), ("RTA_GATEWAY", "10.0.0.1")], how=CREATE | APPEND),
    ),
    "gateway on the link": (
        add_route("::/0", gateway="fd00::1", index=3, onlink=True),
        route(V6, 0, [("RTA_OIF", 3), ("RTA_GATEWAY", "fd00::1")], flags=4),
    ),
    "neighbour that is known": (
        rtnl_encode.update_neighbour(3, "fd00::1", MAC),
        pyroute(
            ndmsg,
            28,
            0x101,
            {"family": V6, "ifindex": 3, "state": 4},
            [("NDA_DST", "fd00::1"), ("NDA_LLADDR", MAC)],
        ),
    ),
    "neighbour": (
        rtnl_encode.add_neighbour(3, "10.0.0.1", MAC),
        pyroute(
            ndmsg,
            28,
            0x501,
            {"family": V4, "ifindex": 3, "state": 0x80},
            [("NDA_DST", "10.0.0.1"), ("NDA_LLADDR", MAC)],
        ),
    ),
}


CASES = [
    pytest.param(*case, id=f"{table}: {name}")
    for table, cases in {"address": ADDRESSES, "route": ROUTES}.items()
    for name, case in cases.items()
]


@pytest.mark.parametrize(("message", "expected"), CASES)
def test_as_pyroute2(message: Message, expected: bytes) -> None:
    assert encode(message, 7).hex() == expected.hex()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: add_route("10.0.0.0/8", gateway="fd00::1", index=3),
            "gateway fd00::1",
        ),
        (lambda: add_route("10.0.0.1/8", index=3), "host bits"),
    ],
)
def test_refused_before_the_kernel_sees_it(call: Callable[[], Message], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_what_names_the_link() -> None:
    assert (
        rtnl_encode.add_address(3, "10.0.0.2/24", on="eth0").what
        == "add address 10.0.0.2/24 to eth0"
    )
    assert rtnl_encode.add_address(3, "10.0.0.2/24").what == "add address 10.0.0.2/24 to link 3"
