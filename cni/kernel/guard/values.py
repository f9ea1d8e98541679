"""What is a guest's own, and how the maps of the guard have it. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_network

REASONS = ("mac", "vlan", "l2control", "arp", "ip", "dhcp_server", "nd", "router", "ethertype")
KEY_SIZE = 21  # struct key in guard.bpf.c
CLOSED = bytes(8)  # a struct conf that lets nothing pass
_READY, _ANY_ADDRESS, _DHCP_SERVER, _ROUTER, _L2CONTROL = 1, 2, 4, 8, 16


@dataclass(frozen=True)
class Values:
    """What the frames of one guest may say.

    `addresses` are networks or single addresses, None for any. `macs` are those beside `mac`;
    `vlans` are the tags that a frame may have, `ether_types` those that pass beside IPv4, IPv6 and
    ARP.
    """

    mac: str
    addresses: tuple[str, ...] | None = None
    macs: tuple[str, ...] = ()
    vlans: tuple[int, ...] = ()
    ether_types: tuple[int, ...] = ()
    dhcp_server: bool = False
    router: bool = False
    l2control: bool = False

    def conf(self) -> bytes:
        """Return the struct conf."""
        flags = _READY
        flags |= _ANY_ADDRESS if self.addresses is None else 0
        flags |= _DHCP_SERVER if self.dhcp_server else 0
        flags |= _ROUTER if self.router else 0
        flags |= _L2CONTROL if self.l2control else 0
        return struct.pack("=6sH", _mac(self.mac), flags)

    def keys(self) -> set[bytes]:
        """Return the keys of the map `allowed`."""
        found = {_key("M", _mac(mac)) for mac in self.macs}
        found |= {_key("V", struct.pack("!H", vlan)) for vlan in self.vlans}
        found |= {_key("E", struct.pack("!H", number)) for number in self.ether_types}
        return found | {_network(text) for text in self.addresses or ()}


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _key(kind: str, data: bytes, bits: int | None = None) -> bytes:
    length = 8 * len(data) if bits is None else bits
    return struct.pack("=Ic16s", 8 + length, kind.encode(), data)


def _network(text: str) -> bytes:
    network = ip_network(text, strict=False)
    return _key(str(network.version), network.network_address.packed, network.prefixlen)
