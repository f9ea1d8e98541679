"""The values that travel through vmlink. Frozen; nothing here touches the system."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

POOL = "+pool"  # in the place of a container for what waits for one; no container id begins so


@dataclass(frozen=True)
class AttachmentKey:
    """One interface of one container: what CNI calls an attachment.

    All names that vmlink gives to links and files derive from this key, so that DEL finds
    them again without a record. With a `kit` of the pool, twelve hexadecimal digits, those of the
    port in the host's namespace are the kit's.
    """

    container_id: str
    ifname: str
    kit: str = field(default="", compare=False)

    @staticmethod
    def of_kit(kit: str) -> AttachmentKey:
        """Of a kit that no pod has."""
        return AttachmentKey(POOL, kit, kit)

    @property
    def pooled(self) -> bool:
        return self.container_id == POOL

    @property
    def wire(self) -> str:
        """The digits of the port in the host's namespace."""
        return self.kit or self.digest

    @cached_property
    def _hash(self) -> bytes:
        text = f"{self.container_id}\0{self.ifname}".encode("utf-8", "surrogateescape")
        return hashlib.blake2s(text).digest()

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits, fit for a link name (IFNAMSIZ leaves 15)."""
        return self._hash[:6].hex()

    @property
    def host_link(self) -> str:
        """The switch's end of the veth, in the host's namespace."""
        return "vlh" + self.digest

    @property
    def tap_link(self) -> str:
        return "vlt" + self.digest

    @property
    def tap_port(self) -> str:
        """The tap that is itself the switch's port."""
        return "vlt" + self.wire

    @property
    def ifb_link(self) -> str:
        return "vli" + self.digest

    @property
    def qdisc(self) -> int:
        """The handle of a qdisc of ours at the root of a link that is not; far from what people
        (1:) and the kernel (8000: and up) choose."""
        return (int(self.digest[:4], 16) & 0x3FFF | 0x4000) << 16

    @property
    def vhost_port(self) -> str:
        """A port of Open vSwitch that no link of the kernel stands behind."""
        return "vlu" + self.wire

    @property
    def group(self) -> int:
        """IFLA_GROUP of the links in the pod's namespace: they are deleted by one request."""
        return int(self.digest[:8], 16) & 0x7FFFFFFF | 0x40000000

    @property
    def ifindexes(self) -> range:
        """What a macvtap may have for an ifindex, the first that is free: its node in /dev, named
        after it, is there once for all namespaces. Kata Containers picks from 8192 to 73727."""
        first = 0x20000 + (int.from_bytes(self._hash[21:25]) & 0xFFFFFFF)
        return range(first, first + 8)

    def mac(self, role: Literal["guest", "tap"] = "guest") -> str:
        """A locally administered unicast MAC address, the same for each try of one ADD."""
        start = {"guest": 6, "tap": 16}[role]
        return "02:" + self._hash[start : start + 5].hex(":")

    def __str__(self) -> str:
        return f"{self.container_id}/{self.ifname}"


@dataclass(frozen=True)
class Interface:
    """`interfaces[]` of a CNI result. `mtu`, `socket_path` and `pci_id` are of 1.1.0."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


@dataclass(frozen=True)
class IP:
    """`ips[]`: an address with its prefix length; `interface` indexes `interfaces[]`."""

    address: str
    gateway: str = ""
    interface: int | None = None


@dataclass(frozen=True)
class Route:
    """`routes[]`. All but dst and gw are of 1.1.0; `scope` 0 is a value, hence None."""

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


@dataclass(frozen=True)
class Result:
    """A CNI result, as of 1.1.0; `cni.spec.result` writes it in the version that was asked for."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IP, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lease:
    """Addresses that somebody outside has chosen: `holder` has them, on the segment `switch`."""

    holder: str = ""
    switch: str = ""
    ips: tuple[IP, ...] = ()
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True)
class Request:
    """One call of a CNI verb, as `cni.spec.request` validated it. GC and STATUS have no `key`."""

    verb: str
    version: str
    conf: dict[str, Any]
    stdin: bytes
    env: dict[str, str]
    args: dict[str, str] = field(default_factory=dict)
    key: AttachmentKey | None = None
    netns_path: str = ""
