"""The key `guard` of a network: what a guest may send besides what is its own. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, TypeVar

from cni.config.mode_rules import ModeRules, any_of
from cni.config.readers import (
    as_number,
    as_object,
    as_text,
    as_unicast_mac,
    flag,
    items,
    refuse_unknown,
)
from cni.errors import BadConfig

T = TypeVar("T")

_KEYS = ("allowedAddresses", "etherTypes", "dhcpServer", "router", "l2control", "macs")
_LEAST_TYPE = 0x600  # below it is the length of an 802.3 frame
# IPv4, ARP, RARP (QEMU's old number too), IPv6 and the tags: they have rules of their own.
_RULED = (0x0800, 0x0806, 0x8035, 0x0835, 0x86DD, 0x8100, 0x88A8)


@dataclass(frozen=True)
class GuardConf:
    """What passes beside the guest's own MAC and addresses: networks, EtherTypes, MACs, roles."""

    allowed_addresses: tuple[str, ...] = ()
    ether_types: tuple[int, ...] = ()
    macs: tuple[str, ...] = ()
    dhcp_server: bool = False
    router: bool = False
    l2control: bool = False


def parse(conf: Mapping[str, Any], mode: str, uplink: str, rules: ModeRules) -> GuardConf | None:
    """Read the key for a mode on a kind of uplink; None where nothing is guarded.

    Raises BadConfig or UnsupportedField.
    """
    value = conf.get("guard")
    if value in (None, False):
        return None
    if uplink not in rules.guards:
        able = f"the uplink {any_of(rules.guards)}" if rules.guards else "another mode"
        raise BadConfig(
            f"guard: mode {mode} on the uplink {uplink} has no guard; drop the key or use {able}"
        )
    return GuardConf() if value is True else _section(as_object(value, "guard"))


def _section(data: Mapping[str, Any]) -> GuardConf:
    refuse_unknown(data, _KEYS, "guard.")
    return GuardConf(
        _each(data, "allowedAddresses", _network),
        _each(data, "etherTypes", _ether_type),
        _each(data, "macs", as_unicast_mac),
        flag(data, "dhcpServer", "guard."),
        flag(data, "router", "guard."),
        flag(data, "l2control", "guard."),
    )


def _each(data: Mapping[str, Any], key: str, read: Callable[[Any, str], T]) -> tuple[T, ...]:
    values = enumerate(items(data, key, "guard."))
    return tuple(read(value, f"guard.{key}[{n}]") for n, value in values)


def _network(value: Any, where: str) -> str:
    try:
        return str(ip_network(as_text(value, where)))
    except ValueError as e:
        raise BadConfig(
            f"{where}: expected an address or a network like 10.1.0.0/24, found {value!r}", str(e)
        ) from e


def _ether_type(value: Any, where: str) -> int:
    text = value if isinstance(value, str) else ""
    if text.lower().startswith("0x"):
        try:
            value = int(text, 16)
        except ValueError as e:
            raise BadConfig(f"{where}: expected a number like 0x88b5, found {value!r}") from e
    number = as_number(value, where, _LEAST_TYPE, 0xFFFF)
    if number in _RULED:
        raise BadConfig(f"{where}: {number:#06x} has rules of its own; drop it")
    return number
