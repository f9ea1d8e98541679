"""CNI results read from JSON and written as JSON, in every served version.

Source: CNI specification 0.3.1 to 1.1.0, section "Result Types".
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Any

from cni.errors import BadConfig
from cni.spec.types import IP, Interface, Result, Route, is_plain

# The CNI versions that are served, the oldest first.
VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")

_MAX = 2**32 - 1  # of the kernel's numbers for routes and links
_INTERFACE_1_1 = {"mtu": "mtu", "socketPath": "socket_path", "pciID": "pci_id"}
_DNS_LISTS = ("nameservers", "search", "options")
_ROUTE_1_1 = ("mtu", "advmss", "priority", "table", "scope")


def dump(result: Result, version: str) -> dict[str, Any]:
    """Write a result as the CNI `version` has it; what is newer than that is left out."""
    return {
        "cniVersion": version,
        "interfaces": [_dump_interface(i, version) for i in result.interfaces],
        "ips": [_dump_ip(ip, version) for ip in result.ips],
        "routes": [dump_route(r, version) for r in result.routes],
        "dns": result.dns,
    }


def load(data: Mapping[str, Any], where: str = "result") -> Result:
    """Read a result of any served version; a missing part is empty.

    Raises BadConfig, which begins with `where` and the path of the field that is wrong.
    """
    reader = _Reader(where)
    if not isinstance(data, Mapping):
        raise BadConfig(f"{where}: expected an object, found {data!r}")
    interfaces = tuple(reader.interface(i, d) for i, d in reader.objects(data, "interfaces"))
    ips = tuple(reader.ip(i, d, len(interfaces)) for i, d in reader.objects(data, "ips"))
    routes = tuple(reader.route(i, d) for i, d in reader.objects(data, "routes"))
    return Result(interfaces, ips, routes, load_dns(data.get("dns"), f"{where}.dns"))


def load_dns(data: Any, where: str) -> dict[str, Any]:
    """Read the `dns` of a result or a configuration, without what is empty.

    Raises BadConfig, which begins with `where` and the key that is wrong.
    """
    if data is not None and not isinstance(data, dict):
        raise BadConfig(f"{where}: expected an object, found {data!r}")
    dns = {key: value for key, value in (data or {}).items() if value not in (None, "", [])}
    for key, value in dns.items():
        if key == "domain" and not is_plain(value):
            raise BadConfig(f"{where}.{key}: expected a text, found {value!r}")
        if key in _DNS_LISTS and not _is_texts(value):
            raise BadConfig(f"{where}.{key}: expected a list of texts, found {value!r}")
    return dns


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(is_plain(item) for item in value)


def _dump_interface(interface: Interface, version: str) -> dict[str, Any]:
    out: dict[str, Any] = {"name": interface.name}
    if interface.mac:
        out["mac"] = interface.mac
    if interface.sandbox:
        out["sandbox"] = interface.sandbox
    if version == "1.1.0":
        for key, name in _INTERFACE_1_1.items():
            if value := getattr(interface, name):
                out[key] = value
    return out


def _dump_ip(ip: IP, version: str) -> dict[str, Any]:
    out: dict[str, Any] = {"address": ip.address}
    if version in ("0.3.1", "0.4.0"):
        out["version"] = str(ip_interface(ip.address).version)
    if ip.gateway:
        out["gateway"] = ip.gateway
    if ip.interface is not None:
        out["interface"] = ip.interface
    return out


def dump_route(route: Route, version: str = VERSIONS[-1]) -> dict[str, Any]:
    """Write one route as `dump` does."""
    out: dict[str, Any] = {"dst": route.dst}
    if route.gw:
        out["gw"] = route.gw
    if version == "1.1.0":
        for name in _ROUTE_1_1:
            value = getattr(route, name)
            if value or (value is not None and name in ("table", "scope")):
                out[name] = value
    return out


class _Reader:
    """Reads the parts of a result; errors name the field by its path below `where`."""

    def __init__(self, where: str) -> None:
        self.where = where

    def objects(self, data: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
        items = data.get(key) or []
        if not isinstance(items, list):
            raise BadConfig(f"{self.where}.{key}: expected a list, found {items!r}")
        for n, item in enumerate(items):
            if not isinstance(item, dict):
                raise BadConfig(f"{self.where}.{key}[{n}]: expected an object, found {item!r}")
        return [(f"{self.where}.{key}[{n}]", item) for n, item in enumerate(items)]

    def interface(self, path: str, data: Mapping[str, Any]) -> Interface:
        return Interface(
            name=_typed(data, "name", str, path, ""),
            mac=_typed(data, "mac", str, path, ""),
            sandbox=_typed(data, "sandbox", str, path, ""),
            mtu=_number(data, "mtu", path, 0),
            socket_path=_typed(data, "socketPath", str, path, ""),
            pci_id=_typed(data, "pciID", str, path, ""),
        )

    def ip(self, path: str, data: Mapping[str, Any], interfaces: int) -> IP:
        address, gateway = _cidr(data, "address", path), _address(data, "gateway", path)
        _same_family(f"{path}.gateway", gateway, address)
        index = _typed(data, "interface", int, path, None)
        if index is not None and not -1 <= index < max(interfaces, 1):
            raise BadConfig(f"{path}.interface: {index} is not an index into interfaces")
        return IP(str(address), gateway, None if index == -1 else index)

    def route(self, path: str, data: Mapping[str, Any]) -> Route:
        # What is beyond the prefix does not count: other plugins and kube-ovn read it so.
        dst, gw = _cidr(data, "dst", path).network, _address(data, "gw", path)
        _same_family(f"{path}.gw", gw, dst)
        return Route(
            dst=str(dst),
            gw=gw,
            mtu=_number(data, "mtu", path, 0),
            advmss=_number(data, "advmss", path, 0),
            priority=_number(data, "priority", path, 0),
            table=_number(data, "table", path, None),
            scope=_number(data, "scope", path, None, 255),
        )


def _cidr(data: Mapping[str, Any], key: str, path: str) -> IPv4Interface | IPv6Interface:
    text: str = _typed(data, key, str, path, "")
    bare, _, length = text.partition("/")
    try:
        if length.isascii() and length.isdecimal() and "%" not in bare:  # no netmask, no zone
            return ip_interface(text)
    except ValueError:
        pass
    raise BadConfig(f"{path}.{key}: expected IP/prefix, found {text!r}")


def _address(data: Mapping[str, Any], key: str, path: str) -> str:
    text: str = _typed(data, key, str, path, "")
    try:
        if "%" not in text:  # a zone
            return text and str(ip_address(text))
    except ValueError:
        pass
    raise BadConfig(f"{path}.{key}: expected an IP address, found {text!r}")


def _same_family(where: str, gateway: str, other: Any) -> None:
    if gateway and ip_address(gateway).version != other.version:
        raise BadConfig(
            f"{where}: {gateway} is of another IP version than {other}; give one of the same"
        )


def _number(data: Mapping[str, Any], key: str, path: str, default: Any, high: int = _MAX) -> Any:
    value = _typed(data, key, int, path, default)
    if value is not None and not 0 <= value <= high:
        raise BadConfig(f"{path}.{key}: expected a number from 0 to {high}, found {value}")
    return value


def _typed(data: Mapping[str, Any], key: str, kind: type, path: str, default: Any) -> Any:
    value = data.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadConfig(f"{path}.{key}: expected {kind.__name__}, found {value!r}")
    return value
