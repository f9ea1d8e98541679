"""The configuration of `host-local`: ranges, requested addresses, DNS.

All functions raise BadConfig, which names the key. Source: cni.dev, plugins/ipam/host-local.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import pairwise
from typing import Any

from cni.config.readers import items, obj
from cni.errors import BadConfig
from cni.spec.types import is_plain

Address = IPv4Address | IPv6Address

DATA_DIR = "/var/lib/cni/networks"
_RUNTIME = "runtimeConfig."
_NETWORK = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*\Z")
_PREFIX = re.compile(r"[0-9]{1,3}\Z")


@dataclass(frozen=True)
class Range:
    """A range of addresses as numbers, `first` to `last` included; `prefix` is the subnet's length.

    `key` is where it stands in the configuration. The gateway may lie in it and is not given out.
    """

    key: str
    version: int
    first: int
    last: int
    prefix: int
    gateway: Address

    def __contains__(self, address: Address) -> bool:
        return self.version == address.version and self.first <= int(address) <= self.last

    def address(self, number: int) -> Address:
        """The address with that number."""
        return IPv4Address(number) if self.version == 4 else IPv6Address(number)

    def __str__(self) -> str:
        return f"{self.key} ({self.address(self.first)}-{self.address(self.last)})"


def section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section `ipam` of a network configuration."""
    return obj(config, "ipam")


def directory_of(network: str, config: Mapping[str, Any]) -> str:
    """The directory of a network's store, `<dataDir>/<network>`."""
    if not _NETWORK.match(network):
        raise BadConfig(f"name: {network!r} cannot name a directory; use letters, digits, _ . -")
    base = _text(section(config), "dataDir", "ipam") or DATA_DIR
    if not base.startswith("/"):
        raise BadConfig(f"ipam.dataDir: {base!r} is relative; write an absolute path")
    return os.path.join(base, network)


def range_sets(config: Mapping[str, Any]) -> list[list[Range]]:
    """The range sets: of the capability ipRanges, of `subnet` (old style), of `ranges`.

    The files last_reserved_ip.<number> number them in this order.
    """
    ipam = section(config)
    runtime = obj(config, "runtimeConfig")
    sets = _named_sets(runtime, "ipRanges", _RUNTIME)
    if ipam.get("subnet"):
        sets.append([_range(ipam, "ipam")])
    sets += _named_sets(ipam, "ranges", "ipam.")
    file = _text(ipam, "rangeFromFile", "ipam")
    if not sets and file:
        sets.append([_range_from_file(file)])
    if not sets:
        raise BadConfig("ipam.ranges: no range; give ipam.ranges or ipam.subnet")
    every = sorted((r for s in sets for r in s), key=lambda r: (r.version, r.first))
    for a, b in pairwise(every):
        if a.version == b.version and b.first <= a.last:
            raise BadConfig(f"{a} overlaps {b}; every address may be in one range only")
    return sets


def requested(config: Mapping[str, Any], args: Mapping[str, str]) -> dict[Address, str]:
    """The addresses that are asked for, each with the key that does; a prefix is ignored."""
    cni = obj(obj(config, "args"), "cni", "args.")
    asked = {"CNI_ARGS IP": args["IP"]} if args.get("IP") else {}
    for data, where in ((cni, "args.cni."), (obj(config, "runtimeConfig"), _RUNTIME)):
        asked |= {where + key: value for key, value in _elements(data, "ips", where).items()}
    return {_without_prefix(value, key): key for key, value in asked.items()}


def resolv_conf(ipam: Mapping[str, Any]) -> dict[str, Any]:
    """Read the file `resolvConf` as the `dns` of a result; {} without one (resolv.conf(5))."""
    path = _text(ipam, "resolvConf", "ipam")
    dns: dict[str, Any] = {}
    for line in _read_file(path, "ipam.resolvConf").splitlines() if path else ():
        word, *rest = line.split() or [""]
        if not rest or word[0] in "#;":
            continue
        if word == "nameserver":
            dns.setdefault("nameservers", []).append(rest[0])
        elif word == "domain":
            dns["domain"] = rest[0]
        elif word in ("search", "options"):
            dns.setdefault(word, []).extend(rest)
    return dns


def _named_sets(data: Mapping[str, Any], key: str, where: str) -> list[list[Range]]:
    sets = _elements(data, key, where)
    return [_range_set(sets, name, where) for name in sets]


def _range_set(data: Mapping[str, Any], key: str, where: str) -> list[Range]:
    if where == _RUNTIME and isinstance(data[key], dict):  # go-cni knows ranges, and no sets
        return [_range(data[key], where + key)]
    elements = _elements(data, key, where)
    ranges = [_range(obj(elements, name, where), where + name) for name in elements]
    if not ranges:
        raise BadConfig(f"{where}{key}: an empty range set; add a range or remove it")
    if len({r.version for r in ranges}) > 1:
        raise BadConfig(f"{where}{key}: IPv4 and IPv6 in one range set; make a set of each")
    return ranges


def _elements(data: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """The elements of a list, each by its own key, such as `ranges[0]`."""
    return {f"{key}[{n}]": value for n, value in enumerate(items(data, key, where))}


def _range(data: Mapping[str, Any], key: str) -> Range:
    text = _text(data, "subnet", key)
    base, _, length = text.partition("/")
    if not _PREFIX.match(length):
        raise BadConfig(f"{key}.subnet: expected network/prefix length, found {text!r}")
    subnet = _address(base, f"{key}.subnet")
    prefix, bits = int(length), subnet.max_prefixlen
    if prefix > bits - 2:
        raise BadConfig(f"{key}.subnet: {text} is too small; the longest prefix is /{bits - 2}")
    low = int(subnet)
    hosts = (1 << (bits - prefix)) - 1
    high = low | hosts
    if low & hosts:
        network = type(subnet)(low & ~hosts)
        raise BadConfig(f"{key}.subnet: {text} has host bits set; write {network}/{prefix}")
    ends = {"rangeStart": low + 1, "rangeEnd": high - (subnet.version == 4)}
    for name in ends:
        if data.get(name):
            end = _address(data[name], f"{key}.{name}")
            if end.version != subnet.version or not low <= int(end) <= high:
                raise BadConfig(f"{key}.{name}: {end} is not in {text}; choose one of it")
            ends[name] = int(end)
    first, last = ends.values()
    if first > last:
        raise BadConfig(f"{key}.rangeStart: it is after the rangeEnd; exchange or correct them")
    gateway = data.get("gateway")
    chosen = _address(gateway, f"{key}.gateway") if gateway else type(subnet)(low + 1)
    if chosen.version != subnet.version:
        raise BadConfig(f"{key}.gateway: {chosen} is of another IP version than {text}; correct it")
    return Range(key, subnet.version, first, last, prefix, chosen)


def _range_from_file(path: str) -> Range:
    key = "ipam.rangeFromFile"
    try:
        return _range(obj({key: json.loads(_read_file(path, key))}, key), key)
    except (ValueError, RecursionError) as e:
        raise BadConfig(f"{key}: {path} is not JSON: {e}") from e


def _without_prefix(value: Any, key: str) -> Address:
    if not isinstance(value, str):
        raise BadConfig(f"{key}: expected an IP address, found {value!r}")
    text, slash, length = value.partition("/")
    address = _address(text, key)
    if slash and (not _PREFIX.match(length) or int(length) > address.max_prefixlen):
        raise BadConfig(f"{key}: {value!r} has a bad prefix length; correct it or leave it out")
    return address


def _address(value: Any, key: str) -> Address:
    try:
        address = ip_address(value) if isinstance(value, str) else None
    except ValueError:
        address = None
    if address is None:
        raise BadConfig(f"{key}: expected an IP address, found {value!r}")
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise BadConfig(f"{key}: {value!r} has a zone; write the address alone")
        return address.ipv4_mapped or address
    return address


def _read_file(path: str, key: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError as e:
        raise BadConfig(f"{key}: cannot read {path}: {e.strerror}") from e


def _text(data: Mapping[str, Any], name: str, key: str) -> str:
    value = data.get(name) or ""
    if not is_plain(value):
        raise BadConfig(f"{key}.{name}: expected a string, found {value!r}")
    return str(value)
