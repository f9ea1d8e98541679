"""What kube-ovn's controller writes about an attachment: a pod's annotations -> Assignment. Pure.

Each is called `P.kubernetes.io/<field>`, with P the provider. Source: kube-ovn, pkg/util/const.go
for the names, pkg/daemon/handler.go for what they mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from cni.config.nic import least_burst
from cni.config.readers import MAX_VLAN, is_unicast_mac
from cni.errors import BadConfig, TryAgain
from cni.spec.routing import DEFAULTS
from cni.spec.types import IP, Bandwidth, Route, family_of

MODE = "vmlink.dev/mode"
OVN = "ovn"  # the provider of the cluster's own network

_READ = (
    "allocated routed ip_address mac_address cidr gateway logical_switch vlan_id default_route "
    "routes ingress_rate egress_rate ingress_burst egress_burst virtualmachine"
).split()
_NETEM = ("latency", "limit", "loss", "jitter")
_NO_NETEM = (
    "none, since vmlink delays and drops no packets; remove it, or leave the pod to kube-ovn"
)
_FIELDS = frozenset((*_READ, *_NETEM))
_DOMAIN = ".kubernetes.io/"
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,6})?", re.ASCII)


@dataclass(frozen=True)
class Wanted:
    """The attachment that is asked for; `provider` is the network's, as in `net1.default.ovn`."""

    provider: str
    ifname: str

    def prefix(self, annotations: Mapping[str, str]) -> str:
        """Return P: the provider, with the interface's name where the pod has the network twice."""
        own = f"{self.provider}.{self.ifname}"
        return own if own + _DOMAIN + "allocated" in annotations else self.provider

    @property
    def logical(self) -> bool:
        """Whether it is a logical port of OVN; if not, kube-ovn only assigns the addresses."""
        return self.provider == OVN or self.provider.endswith("." + OVN)


@dataclass(frozen=True)
class Assignment:
    """What kube-ovn has assigned to an attachment.

    `ips` is empty for a port that has only a MAC. `vlan` is 0 for none, and where OVN does the
    tagging. `vm` is the name of the pod's virtual machine, if it has one.
    """

    provider: str
    mac: str
    ips: tuple[IP, ...]
    routes: tuple[Route, ...]
    logical_switch: str
    vlan: int
    bandwidth: Bandwidth | None
    vm: str

    def port(self, pod: str, namespace: str) -> str:
        """Return the name of the logical port, `iface-id` in Open vSwitch.

        It is the virtual machine's, if there is one, and so stays when the VM moves to a new pod.
        """
        name = f"{self.vm or pod}.{namespace}"
        return name if self.provider == OVN else f"{name}.{self.provider}"


def needed(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return those that vmlink reads, of all that a pod has."""
    return {k: v for k, v in annotations.items() if k == MODE or _field(k) in _FIELDS}


def missing(annotations: Mapping[str, str], wanted: Wanted) -> str:
    """Say what the controller has yet to write; "" when it is complete."""
    reader = _Reader(annotations, wanted.prefix(annotations))
    for field in ("allocated", *(("routed",) if _is_routed(reader, wanted) else ())):
        if reader.text(field) != "true":
            there = ", ".join(f for f in _READ if reader.text(f)) or "none of kube-ovn's for it"
            return f'annotation {reader.name(field)} is not "true" yet (there is: {there})'
    return ""


def parse(
    annotations: Mapping[str, str], wanted: Wanted, network_routes: Sequence[Any] = ()
) -> Assignment:
    """Read the annotations of an attachment that are not `missing`.

    `network_routes` are the network's own. Raises TryAgain, which names the annotation: it may be
    corrected while the pod waits. Raises BadConfig for a wrong route of the network.
    """
    reader = _Reader(annotations, wanted.prefix(annotations))
    for field in _NETEM:
        if reader.text(field) not in ("", "0"):
            raise reader.error(field, _NO_NETEM)
    ips = _ips(reader)
    own = routes_of("kubeovn.routes", list(network_routes), ips)
    return Assignment(
        provider=reader.prefix,
        mac=_mac(reader),
        ips=ips,
        routes=_routes(reader, ips, _is_default(reader, wanted), own),
        logical_switch=reader.text("logical_switch"),
        vlan=0 if wanted.logical else _vlan(reader),
        bandwidth=_bandwidth(reader),
        vm=reader.text("virtualmachine"),
    )


def routes_of(where: str, items: Any, ips: tuple[IP, ...]) -> tuple[Route, ...]:
    """Read kube-ovn's list of `{"dst", "gw"}`; without dst it is a default route.

    Without gw the gateway is the one in `ips` of the same family. Raises BadConfig, which begins
    with `where`.
    """
    if items is None:  # Go's empty list
        return ()
    if not isinstance(items, list):
        raise BadConfig(f'{where}: expected a list of {{"dst", "gw"}}, found {items!r}')
    return tuple(_route(f"{where}[{n}]", item, ips) for n, item in enumerate(items))


class _Reader:
    """Reads the annotations of one attachment by field."""

    def __init__(self, annotations: Mapping[str, str], prefix: str) -> None:
        self._annotations = annotations
        self.prefix = prefix

    def name(self, field: str) -> str:
        """Return the annotation's whole name."""
        return self.prefix + _DOMAIN + field

    def text(self, field: str) -> str:
        """Return its value; "" when it is absent."""
        return self._annotations.get(self.name(field), "")

    def items(self, field: str) -> list[str]:
        """Split at commas, by which kube-ovn joins the values of IPv4 and IPv6."""
        return [item.strip() for item in self.text(field).split(",") if item.strip()]

    def error(self, field: str, expected: str) -> TryAgain:
        """Return the error for a wrong value."""
        return TryAgain(
            f"annotation {self.name(field)}: expected {expected}; found {self.text(field)!r}"
        )


def _field(key: str) -> str:
    return key.partition(_DOMAIN)[2]


def _is_default(reader: _Reader, wanted: Wanted) -> bool:
    return {"true": True, "false": False}.get(reader.text("default_route"), wanted.ifname == "eth0")


def _is_routed(reader: _Reader, wanted: Wanted) -> bool:
    """Whether the controller has a route to make as well."""
    return wanted.logical and _is_default(reader, wanted)


def _mac(reader: _Reader) -> str:
    text = reader.text("mac_address").lower()
    if not is_unicast_mac(text):
        raise reader.error("mac_address", "a unicast MAC, which kube-ovn's controller writes")
    return text


def _ips(reader: _Reader) -> tuple[IP, ...]:
    gateways = {ip.version: str(ip) for ip in _addresses(reader, "gateway")}
    networks = {}
    for item in reader.items("cidr"):
        try:
            subnet = ip_network(item)
        except ValueError:
            raise reader.error("cidr", "subnets like 10.16.0.0/16, one of a family") from None
        networks[subnet.version] = subnet
    ips = []
    for ip in _addresses(reader, "ip_address"):
        network = networks.get(ip.version)
        if network is None or ip not in network:
            subnets = f"{reader.name('cidr')}, which is {reader.text('cidr')!r}"
            raise reader.error("ip_address", f"addresses in {subnets}; correct one")
        ips.append(IP(f"{ip}/{network.prefixlen}", gateways.get(ip.version, "")))
    return tuple(ips)


def _addresses(reader: _Reader, field: str) -> list[Any]:
    try:
        return [_bare(item) for item in reader.items(field)]
    except ValueError:
        raise reader.error(field, "IP addresses, joined by a comma; correct it") from None


def _routes(
    reader: _Reader, ips: tuple[IP, ...], default: bool, own: tuple[Route, ...]
) -> tuple[Route, ...]:
    """Return a route for each destination: the pod's before the network's before the gateway's.

    kube-ovn makes them in the reverse order, and each replaces the one before.
    """
    defaults = tuple(Route(DEFAULTS[family_of(ip.gateway)], ip.gateway) for ip in ips if ip.gateway)
    text = reader.text("routes")
    try:
        listed = routes_of(reader.name("routes"), json.loads(text), ips) if text else ()
    except BadConfig as e:
        raise TryAgain(f"annotation {e.msg}") from e
    except (ValueError, RecursionError):
        raise reader.error("routes", 'JSON, a list of {"dst", "gw"}') from None
    merged = {route.dst: route for route in (*(defaults if default else ()), *own, *listed)}
    return tuple(merged.values())


def _route(where: str, item: Any, ips: tuple[IP, ...]) -> Route:
    wrong = BadConfig(
        f'{where}: expected {{"dst": "10.1.0.0/16", "gw": "10.16.0.1"}}, found {item!r}; a gw may '
        "be left out where the subnet has a gateway"
    )
    if not isinstance(item, dict) or set(item) - {"dst", "gw"}:
        raise wrong
    try:
        gateway = _bare(item["gw"]) if item.get("gw") else None
        version = gateway.version if gateway else None
        network = _subnet(item.get("dst") or DEFAULTS[version or 4])
    except ValueError:
        raise wrong from None
    fitting = (ip.gateway for ip in ips if ip.gateway and family_of(ip.gateway) == network.version)
    gw = str(gateway) if gateway else next(fitting, "")
    if not gw or version not in (None, network.version):
        raise wrong
    return Route(str(network), gw)


def _bare(text: Any) -> Any:
    """An address without a zone. Raises ValueError, also for what is no text."""
    if not isinstance(text, str) or "%" in text:
        raise ValueError
    return ip_address(text)


def _subnet(text: Any) -> Any:
    """A subnet; bits beyond the prefix do not count, as for kube-ovn. Raises ValueError."""
    _bare(text.partition("/")[0] if isinstance(text, str) else text)
    return ip_network(text, strict=False)


def _vlan(reader: _Reader) -> int:
    text = reader.text("vlan_id") or "0"
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and int(text) <= MAX_VLAN):
        raise reader.error("vlan_id", f"a number from 0 (none) to {MAX_VLAN}")
    return int(text)


def _bandwidth(reader: _Reader) -> Bandwidth | None:
    """Read rates in Mbit/s and bursts in Mbit (10**6 bits); 0 is no limit."""
    bits: dict[str, int] = {}
    for way in ("ingress", "egress"):
        for what in ("rate", "burst"):
            field = f"{way}_{what}"
            text = reader.text(field) or "0"
            if not _NUMBER.fullmatch(text):
                raise reader.error(field, "a number of megabits")
            bits[field] = round(float(text) * 1_000_000)
        if bits[f"{way}_rate"]:
            bits[f"{way}_burst"] = bits[f"{way}_burst"] or least_burst(bits[f"{way}_rate"])
        else:
            bits[f"{way}_burst"] = 0
    return Bandwidth(**bits) if any(bits.values()) else None
