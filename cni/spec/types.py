"""The values that pass through vmlink: attachments, results, requests. Frozen and pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from cni.errors import BadConfig

POOL = "+pool"  # the container of a port that the pool has prepared; no container id begins so


@dataclass(frozen=True)
class AttachmentKey:
    """One interface of one container: what CNI calls an attachment.

    All names that vmlink gives to links and files derive from this key, so that DEL finds
    them again without a record. A port that the pool has prepared has an id, `prepared`, of twelve
    hexadecimal digits; the names of its links in the host's namespace derive from that id, before
    and after a pod gets it.
    """

    container_id: str
    ifname: str
    prepared: str = field(default="", compare=False)

    @staticmethod
    def of_prepared(port_id: str) -> AttachmentKey:
        """The key of a prepared port that no pod has yet."""
        return AttachmentKey(POOL, port_id, port_id)

    @property
    def pooled(self) -> bool:
        """Whether this is a prepared port that no pod has yet."""
        return self.container_id == POOL

    @property
    def port_digits(self) -> str:
        """The twelve digits in the name of the port in the host's namespace."""
        return self.prepared or self.digest

    @cached_property
    def _hash(self) -> bytes:
        return _hash_of(self.container_id, self.ifname)

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits; with a prefix they fit a link name (IFNAMSIZ leaves 15)."""
        return self._hash[:6].hex()

    @property
    def host_link(self) -> str:
        """The name of the veth's end at the switch, in the host's namespace."""
        return "vlh" + self.digest

    @property
    def tap_link(self) -> str:
        """The name of the tap in the pod's namespace, and the id of the guest's NIC."""
        return "vlt" + self.digest

    @property
    def tap_port(self) -> str:
        """The name of a tap in the host's namespace, which is itself the switch's port."""
        return "vlt" + self.port_digits

    @property
    def ifb_link(self) -> str:
        """The name of the ifb that limits the traffic of one direction."""
        return "vli" + self.digest

    @property
    def qdisc(self) -> int:
        """The handle of the qdisc that limits a link, 0x4000 to 0x7fff in its major half.

        People take low numbers (1:), the kernel those from 8000: on.
        """
        return (int(self.digest[:4], 16) & 0x3FFF | 0x4000) << 16

    @property
    def port_mac(self) -> str:
        """The MAC address of the port in the host's namespace.

        fe: is above every assigned address, so a bridge never takes it for its own.
        """
        return "fe:" + bytes.fromhex(self.port_digits)[:5].hex(":")

    @property
    def vhost_port(self) -> str:
        """The name of a vhost-user port in Open vSwitch; the kernel has no link for it."""
        return "vlu" + self.port_digits

    @property
    def group(self) -> int:
        """The IFLA_GROUP of the links in the pod's namespace, which one request deletes."""
        return int(self.digest[:8], 16) & 0x7FFFFFFF | 0x40000000

    @property
    def ifindexes(self) -> range:
        """The ifindexes that a macvtap may have, of which the first that is free is taken.

        They are from 131072 up: its node /dev/tap<ifindex> is in one /dev for all namespaces, and
        Kata Containers picks from 8192 to 73727.
        """
        first = 0x20000 + (int.from_bytes(self._hash[21:25]) & 0xFFFFFFF)
        return range(first, first + 8)

    def mac(self, role: Literal["guest", "tap"] = "guest") -> str:
        """The locally administered unicast MAC address of one end, the same in each try of ADD."""
        start = {"guest": 6, "tap": 16}[role]
        return "02:" + self._hash[start : start + 5].hex(":")

    def __str__(self) -> str:
        return f"{self.container_id}/{self.ifname}"


@dataclass(frozen=True)
class Interface:
    """One of `interfaces[]` in a CNI result; `sandbox` is the path of a namespace or "".

    `mtu` (bytes), `socket_path` and `pci_id` came with CNI 1.1.0.
    """

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


@dataclass(frozen=True)
class IP:
    """One of `ips[]`: address/prefix length; `interface` is an index into `interfaces[]`."""

    address: str
    gateway: str = ""
    interface: int | None = None

    @property
    def bare(self) -> str:
        """The address without its prefix length."""
        return self.address.partition("/")[0]


@dataclass(frozen=True)
class Route:
    """One of `routes[]`; `mtu` and `advmss` are in bytes.

    All but `dst` and `gw` came with CNI 1.1.0. 0 is a valid `table` and `scope`, so None stands for
    no value there.
    """

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


@dataclass(frozen=True)
class Result:
    """A CNI result of version 1.1.0; `cni.spec.result` reads and writes the others."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IP, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: dict[str, Any] = field(default_factory=dict)

    def position_of(self, ifname: str) -> int | None:
        """The index into `interfaces` of the pod's interface `ifname`.

        None where no interface has a sandbox, as in results of Calico and of AWS, and in those of
        0.3.1 without any: they are about CNI_IFNAME in CNI_NETNS. Raises BadConfig when only others
        have one.
        """
        for n, interface in enumerate(self.interfaces):
            if interface.name == ifname and interface.sandbox:
                return n
        if not any(interface.sandbox for interface in self.interfaces):
            return None
        raise BadConfig(
            f"prevResult: has no interface {ifname} with a sandbox; put vmlink behind the plugin "
            "that makes it"
        )

    def ips_of(self, position: int | None) -> tuple[IP, ...]:
        """The addresses of the interface that `position_of` has found."""
        if position is None:
            return self.ips
        return tuple(ip for ip in self.ips if ip.interface in (position, None))


@dataclass(frozen=True)
class Bandwidth:
    """Rates in bits per second and bursts in bits; 0 is no limit. Ingress is towards the pod.

    Source: CNI conventions, capability `bandwidth`.
    """

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


@dataclass(frozen=True)
class Lease:
    """Addresses that a controller outside has chosen for a pod, as kube-ovn does.

    `holder` is the logical port that has them, `switch` the logical switch that they are unique in.
    """

    holder: str = ""
    switch: str = ""
    ips: tuple[IP, ...] = ()
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True)
class Request:
    """One call of a CNI verb, as `cni.spec.request` has validated it.

    `conf` is `stdin` decoded, `env` has the CNI_* variables, `args` is CNI_ARGS parsed. GC and
    STATUS are about no attachment: `key` is None, `netns_path` "". `flaws` are what an ADD would be
    refused for, and a DEL passes over.
    """

    verb: str
    version: str
    conf: dict[str, Any]
    stdin: bytes
    env: dict[str, str]
    args: dict[str, str] = field(default_factory=dict)
    key: AttachmentKey | None = None
    netns_path: str = ""
    flaws: tuple[str, ...] = ()


def mac_of(*identity: str) -> str:
    """The locally administered unicast MAC address that belongs to an identity."""
    return "02:" + _hash_of(*identity)[:5].hex(":")


def _hash_of(*identity: str) -> bytes:
    return hashlib.blake2s("\0".join(identity).encode("utf-8", "surrogateescape")).digest()


def is_plain(value: Any) -> bool:
    """Tell whether this is a text without NUL that UTF-8 can encode.

    JSON has escapes for lone surrogates and NUL, which no file name and no database takes.
    """
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def gateways_by_family(ips: Iterable[IP]) -> dict[int, str]:
    """The first gateway of each family, by its IP version: a route without one goes there.

    Source: CNI specification, section "ADD Success", routes.gw.
    """
    return {family_of(ip.gateway): ip.gateway for ip in reversed(list(ips)) if ip.gateway}


def family_of(address: str) -> int:
    """4 or 6, the IP version of an address or CIDR that is known to be valid."""
    return 6 if ":" in address else 4
