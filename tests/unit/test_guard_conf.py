"""The key `guard` of a network, and what its values become in the maps of the program."""

from __future__ import annotations

from typing import Any

import pytest

from cni.config.guard import GuardConf
from cni.config.network import NetConf
from cni.errors import BadConfig, UnsupportedField, VmlinkError
from cni.kernel.guard import elf
from cni.kernel.guard.values import Values
from cni.modes import MODES
from cni.modes.steps.guard import OpenGuard, TakeGuard, addresses_of
from cni.spec.types import IP, AttachmentKey, Interface, Result
from tests.unit.purekit import PREV, parse

GUARDED: list[dict[str, Any]] = [
    {"linux": {"bridge": "br0"}},
    {"ovs": {"bridge": "br0"}},
    {"prevResult": PREV},
    {"mode": "tap", "linux": {"bridge": "br0"}},
    {"mode": "macvtap", "master": "nic0"},
    {"mode": "macvtap", "prevResult": PREV},
]
UNGUARDED: list[dict[str, Any]] = [
    {"mode": "tap", "ovs": {"bridge": "br0"}},
    {"mode": "vhostuser", "ovs": {"bridge": "br0"}},
    {"mode": "veth", "linux": {"bridge": "br0"}},
]
BASE = GUARDED[0]


@pytest.mark.parametrize("conf", GUARDED)
def test_it_is_on_where_a_network_asks_for_it(conf: dict[str, Any]) -> None:
    assert parse({**conf, "guard": True}).guard == parse({**conf, "guard": {}}).guard == GuardConf()
    assert parse({**conf, "guard": False}).guard is parse(conf).guard is None


@pytest.mark.parametrize("conf", UNGUARDED)
def test_it_cannot_be_asked_for_where_there_is_none(conf: dict[str, Any]) -> None:
    assert parse(conf).guard is None
    assert parse({**conf, "guard": False}).guard is None
    values: tuple[Any, ...] = (True, {})
    for value in values:
        with pytest.raises(BadConfig, match=r"^guard: mode .* has no guard; drop the key or use "):
            parse({**conf, "guard": value})


def test_all_of_its_keys() -> None:
    assert parsed(
        allowedAddresses=["10.1.0.0/24", "10.2.0.7", "fd00::/64"],
        etherTypes=["0x88b5", 0x88CC],
        macs=["00-00-5E-00-01-07"],
        dhcpServer=True,
        router=True,
        l2control=True,
    ) == GuardConf(
        ("10.1.0.0/24", "10.2.0.7/32", "fd00::/64"),
        (0x88B5, 0x88CC),
        ("00:00:5e:00:01:07",),
        True,
        True,
        True,
    )


def parsed(**section: Any) -> GuardConf | None:
    conf: NetConf = parse({**BASE, "guard": section})
    return conf.guard


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("yes", BadConfig, "guard: expected an object"),
        ({"pods": True}, UnsupportedField, "guard.pods: unknown key"),
        ({"router": 1}, BadConfig, "guard.router: expected true or false, found 1"),
        ({"macs": "x"}, BadConfig, "guard.macs: expected a list"),
        ({"macs": ["01:00:5e:00:00:01"]}, BadConfig, r"guard.macs\[0\]: expected a unicast MAC"),
        (
            {"allowedAddresses": ["10.0.0.0/8", "10.0.0.1/24"]},
            BadConfig,
            r"Addresses\[1\]: expected",
        ),
        ({"allowedAddresses": [4]}, BadConfig, r"guard.allowedAddresses\[0\]: expected a text"),
        ({"etherTypes": ["0xzz"]}, BadConfig, r"guard.etherTypes\[0\]: expected a number like"),
        ({"etherTypes": ["88b5"]}, BadConfig, r"guard.etherTypes\[0\]: expected a number from"),
        ({"etherTypes": [0x5FF]}, BadConfig, r"guard.etherTypes\[0\]: expected a number from 1536"),
        ({"etherTypes": [0x86DD]}, BadConfig, r"etherTypes\[0\]: 0x86dd has rules of its own"),
        ({"etherTypes": [0x8100]}, BadConfig, r"etherTypes\[0\]: 0x8100 has rules of its own"),
    ],
)
def test_a_wrong_value_is_named(value: Any, kind: type[VmlinkError], message: str) -> None:
    with pytest.raises(kind, match=message):
        parse({**BASE, "guard": value})


def test_of_a_prev_result_only_the_interfaces_own_addresses_count() -> None:
    prev = Result(
        (Interface("other"), Interface("eth0")),
        (IP("10.0.0.2/24", interface=1), IP("10.0.0.3/24", interface=0), IP("fd00::2/64")),
    )
    assert addresses_of(prev, "eth0") == ("10.0.0.2", "fd00::2")
    assert addresses_of(None, "eth0") == ()


def test_of_a_prev_result_that_does_not_name_the_interface_all_addresses_count() -> None:
    """Without any the guard would let every address pass, as on a layer-2 network."""
    aws = Result((Interface("eni1234"),), (IP("10.5.0.2/24", interface=0), IP("fd00::2/64")))
    assert addresses_of(aws, "eth0") == ("10.5.0.2", "fd00::2")


def opened(conf: dict[str, Any]) -> list[OpenGuard]:
    parsed = parse(conf)
    steps = MODES[parsed.mode].plan(AttachmentKey("c1", "eth0"), parsed).steps
    taken = [step for step in steps if isinstance(step, TakeGuard)]
    found = [step for step in steps if isinstance(step, OpenGuard)]
    assert len(taken) == len(found)
    return found


@pytest.mark.parametrize("conf", GUARDED)
def test_a_plan_has_it_where_it_is_on(conf: dict[str, Any]) -> None:
    assert len(opened({**conf, "guard": True})) == 1
    assert opened(conf) == []


def test_a_trunk_passes_its_tags_and_no_other_port_any() -> None:
    trunk = {"bridge": "br0", "trunk": [{"id": 5}, {"minID": 7, "maxID": 8}]}
    assert [step.vlans for step in opened({"ovs": trunk, "guard": True})] == [(5, 7, 8)]
    assert [
        step.vlans for step in opened({"ovs": {"bridge": "br0", "vlan": 5}, "guard": True})
    ] == [()]


def test_values_as_the_maps_have_them() -> None:
    values = Values("02:00:00:00:00:01", ("10.1.0.0/16",), vlans=(5,), router=True)
    assert values.conf() == bytes.fromhex("020000000001") + (1 | 8).to_bytes(2, "little")
    assert values.keys() == {
        (24).to_bytes(4, "little") + b"4" + b"\x0a\1" + bytes(14),
        (24).to_bytes(4, "little") + b"V" + b"\0\5" + bytes(14),
    }


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF\2\1" + bytes(200)])
def test_an_object_of_another_kind_is_refused(data: bytes) -> None:
    with pytest.raises(elf.BadObject):
        elf.read(data)
