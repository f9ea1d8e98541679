"""Readers of one value, for every configuration: a network's, vmlinkd's, a request of kube-ovn's.

`as_*` check a value, the others read a key of an object. `where` is what stands before the key in
messages, such as `tap.`, or for `as_*` the whole name. All raise BadConfig with the key, what is
expected and what was found; `refuse_unknown` raises UnsupportedField.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from cni.errors import BadConfig, BadEnvironment, UnsupportedField
from cni.spec.request import check_ifname
from cni.spec.types import is_plain

MAX_VLAN = 4094
SUN_PATH = 107  # bytes of a unix socket's path, unix(7): 108 with the zero at its end
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def is_unicast_mac(text: str) -> bool:
    """Tell whether this is a unicast MAC address in lower case, with colons."""
    return (
        _MAC.fullmatch(text) is not None
        and not int(text[:2], 16) & 1
        and text != "00:00:00:00:00:00"
    )


def as_unicast_mac(value: Any, where: str) -> str:
    """Return a unicast MAC address in lower case, with colons; hyphens are taken for them."""
    text = value.lower().replace("-", ":") if isinstance(value, str) else ""
    if not is_unicast_mac(text):
        raise BadConfig(f"{where}: expected a unicast MAC like 02:00:00:00:00:01, found {value!r}")
    return text


def as_object(value: Any, where: str) -> dict[str, Any]:
    """Return an object of JSON or a mapping of YAML."""
    if not isinstance(value, dict):
        raise BadConfig(f"{where}: expected an object (keys and values), found {value!r}")
    return value


def as_list(value: Any, where: str) -> list[Any]:
    """Return a list."""
    if not isinstance(value, list):
        raise BadConfig(f"{where}: expected a list, found {value!r}")
    return value


def as_text(value: Any, where: str) -> str:
    """Return a text, which may be empty, and which files and databases can keep."""
    if not is_plain(value):
        raise BadConfig(f"{where}: expected a text, found {value!r}")
    return str(value)


def as_number(value: Any, where: str, low: int, high: int) -> int:
    """Return an integer from `low` to `high`, both included."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadConfig(f"{where}: expected a number from {low} to {high}, found {value!r}")
    return value


def as_choice(value: Any, where: str, allowed: Collection[str]) -> str:
    """Return one of these words."""
    if not isinstance(value, str) or value not in allowed:
        raise BadConfig(f"{where}: expected one of {', '.join(allowed)}, found {value!r}")
    return value


def as_path(value: Any, where: str) -> str:
    """Return an absolute path."""
    if not is_plain(value) or not value.startswith("/"):
        raise BadConfig(f"{where}: expected an absolute path, found {value!r}")
    return str(value)


def as_socket_path(value: Any, where: str) -> str:
    """Return an absolute path that the kernel takes for a unix socket."""
    if len(as_path(value, where).encode()) > SUN_PATH:
        raise BadConfig(
            f"{where}: expected an absolute path of {SUN_PATH} bytes at most, found {value!r}"
        )
    return str(value)


def obj(data: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
    """Read an object; {} where it is absent or null."""
    value = data.get(key)
    return {} if value is None else as_object(value, where + key)


def choice(data: Mapping[str, Any], key: str, allowed: tuple[str, ...], where: str = "") -> str:
    """Read one of these words; the first is the default."""
    return as_choice(data.get(key, allowed[0]), where + key, allowed)


def number(data: Mapping[str, Any], key: str, low: int, high: int, where: str = "") -> int | None:
    """Read an integer from `low` to `high`; None where it is absent or null."""
    value = data.get(key)
    return None if value is None else as_number(value, where + key, low, high)


def flag(data: Mapping[str, Any], key: str, where: str = "") -> bool:
    """Read true or false; false where it is absent."""
    value = data.get(key, False)
    if not isinstance(value, bool):
        raise BadConfig(f"{where}{key}: expected true or false, found {value!r}")
    return value


def text(data: Mapping[str, Any], key: str, where: str = "") -> str:
    """Read a text; "" where it is absent or null."""
    value = data.get(key)
    return "" if value is None else as_text(value, where + key)


def items(data: Mapping[str, Any], key: str, where: str = "") -> list[Any]:
    """Read a list; [] where it is absent or null."""
    value = data.get(key)
    return [] if value is None else as_list(value, where + key)


def texts(data: Mapping[str, Any], key: str, where: str = "") -> list[str]:
    """Read a list of texts; [] where it is absent or null."""
    return [as_text(item, f"{where}{key}[{n}]") for n, item in enumerate(items(data, key, where))]


def link_name(data: Mapping[str, Any], key: str, where: str = "") -> str:
    """Read the name of a network interface."""
    value = data[key]
    try:
        check_ifname(value if isinstance(value, str) else "", where + key)
    except BadEnvironment as e:
        raise BadConfig(f"{where}{key}: {value!r} is not an interface name", e.msg) from e
    return str(value)


def refuse_unknown(data: Mapping[Any, Any], known: Collection[str], where: str = "") -> None:
    """Raise UnsupportedField for the first key that is not among `known`."""
    for key in data:
        if key not in known:
            raise UnsupportedField(
                f"{where}{key}: unknown key (value {data[key]!r}); known are "
                f"{', '.join(sorted(known))}"
            )
