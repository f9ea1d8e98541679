"""Readers for one value of a configuration; each error names the key, what fits, what was found.

`where` is the path in front of the key, as in `tap.`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from cni.errors import BadConfig, BadEnvironment, UnsupportedField
from cni.spec.request import check_ifname

MAX_VLAN = 4094
SUN_PATH = 107  # bytes, unix(7): 108 with the zero at its end
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def is_unicast_mac(text: str) -> bool:
    """In lower case, with colons."""
    return (
        _MAC.fullmatch(text) is not None
        and not int(text[:2], 16) & 1
        and text != "00:00:00:00:00:00"
    )


def obj(data: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
    """An object; {} where there is none."""
    value = data.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadConfig(f"{where}{key}: expected an object, found {value!r}")
    return value


def choice(data: Mapping[str, Any], key: str, allowed: tuple[str, ...], where: str = "") -> str:
    """One of these words; the first is the default."""
    value = data.get(key, allowed[0])
    if value not in allowed:
        raise BadConfig(f"{where}{key}: expected one of {', '.join(allowed)}, found {value!r}")
    return str(value)


def number(data: Mapping[str, Any], key: str, low: int, high: int, where: str = "") -> int | None:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadConfig(f"{where}{key}: expected a number from {low} to {high}, found {value!r}")
    return value


def flag(data: Mapping[str, Any], key: str, where: str = "") -> bool:
    value = data.get(key, False)
    if not isinstance(value, bool):
        raise BadConfig(f"{where}{key}: expected true or false, found {value!r}")
    return value


def items(data: Mapping[str, Any], key: str, where: str = "") -> list[Any]:
    """A list; [] for null."""
    value = data.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadConfig(f"{where}{key}: expected a list or null, found {value!r}")
    return value


def link_name(data: Mapping[str, Any], key: str, where: str = "") -> str:
    value = data[key]
    try:
        check_ifname(value if isinstance(value, str) else "", where + key)
    except BadEnvironment as e:
        raise BadConfig(f"{where}{key}: {value!r} is not an interface name", e.msg) from e
    return str(value)


def refuse_unknown(data: Mapping[str, Any], known: Collection[str], where: str = "") -> None:
    for key in data:
        if key not in known:
            raise UnsupportedField(
                f"{where}{key}: unknown key (value {data[key]!r}); known are "
                f"{', '.join(sorted(known))}"
            )
