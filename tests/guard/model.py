"""The guard's rules in Python, written from its table (docs/security.md) and not from the program.

Sources: RFC 791, 768, 826, 903, 2131, 3810, 4302, 4861, 6980, 7113, 8200, 8415.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_network

from cni.kernel.guard.values import Values

LINK_LOCAL = ip_network("fe80::/64")
DHCP_PORTS = {67, 68, 546, 547}
EXTENSIONS = {0, 43, 44, 51, 60, 135, 139, 140}
RS, RA, NS, NA, REDIRECT = 133, 134, 135, 136, 137
MLD_REPORTS = {131, 143}
PASSES = ""


class Dropped(Exception):
    """The frame does not pass; the argument is the reason."""


def need(condition: bool, reason: str) -> None:
    if not condition:
        raise Dropped(reason)


def number(data: bytes, at: int, size: int = 2) -> int:
    return int.from_bytes(data[at : at + size], "big")


@dataclass(frozen=True)
class Model:
    """The guard of one guest."""

    values: Values

    @cached_property
    def macs(self) -> set[bytes]:
        return {bytes.fromhex(m.replace(":", "")) for m in (self.values.mac, *self.values.macs)}

    @cached_property
    def networks(self) -> list[tuple[int, int, int]]:
        found = [ip_network(text, strict=False) for text in self.values.addresses or ()]
        return [(n.version, int(n.network_address), int(n.netmask)) for n in found]

    def owns(self, address: bytes) -> bool:
        if self.values.addresses is None:
            return True
        version, value = 4 if len(address) == 4 else 6, int.from_bytes(address, "big")
        return any(v == version and value & mask == net for v, net, mask in self.networks)

    def owns_or_link_local(self, address: bytes) -> bool:
        return self.owns(address) or ip_address(address) in LINK_LOCAL

    def judge(self, frame: bytes) -> str:
        """Return the reason for which a frame is dropped, PASSES for none."""
        try:
            self._frame(frame)
        except Dropped as e:
            return str(e)
        return PASSES

    def _frame(self, frame: bytes) -> None:
        need(len(frame) >= 14 and frame[6:12] in self.macs, "mac")
        kind, payload = number(frame, 12), frame[14:]
        if kind in (0x8100, 0x88A8):
            need(len(payload) >= 4, "vlan")
            tag, kind, payload = number(payload, 0) & 0xFFF, number(payload, 2), payload[4:]
            need(tag in self.values.vlans and kind not in (0x8100, 0x88A8), "vlan")
        if frame[:5] == b"\x01\x80\xc2\x00\x00" and frame[5] < 16:
            need(self.values.l2control, "l2control")
            return
        known = {0x0800: self._ipv4, 0x86DD: self._ipv6, 0x0806: self._arp}
        known |= {0x8035: self._rarp, 0x0835: self._rarp}
        if kind in known:
            known[kind](payload)
        else:
            need(kind in self.values.ether_types, "ethertype")

    def _arp(self, data: bytes) -> None:
        need(len(data) >= 28 and data[:6] == bytes.fromhex("000108000604"), "arp")
        operation, source, sender, target = number(data, 6), data[8:14], data[14:18], data[24:28]
        need(source in self.macs and operation in (1, 2), "arp")
        probe = operation == 1 and not any(sender)
        need(self.owns(target if probe else sender), "arp")

    def _rarp(self, data: bytes) -> None:
        need(len(data) >= 28 and data[:8] == bytes.fromhex("0001080006040003"), "arp")
        need(data[8:14] in self.macs and data[18:24] in self.macs, "arp")
        need(not any(data[14:18] + data[24:28]), "arp")

    def _ipv4(self, data: bytes) -> None:
        need(len(data) >= 20 and data[0] >> 4 == 4 and data[0] & 15 >= 5, "ip")
        header, fragment = (data[0] & 15) * 4, number(data, 6) & 0x3FFF
        protocol, source, ports = data[9], data[12:16], (0, 0)
        if protocol == 17 and not fragment & 0x1FFF:
            need(number(data, 2) >= header + 8, "ip")
            ports = self._udp(data[header:], bool(fragment), (67, 68))
        if self.owns(source):
            return
        need(not fragment and not any(source), "ip")
        everybody = data[16:20] == b"\xff" * 4
        need(protocol == 2 or (protocol == 17 and ports == (68, 67) and everybody), "ip")

    def _udp(self, data: bytes, fragment: bool, of_server: tuple[int, int]) -> tuple[int, int]:
        need(len(data) >= 4, "ip")
        ports = number(data, 0), number(data, 2)
        need(not fragment or not DHCP_PORTS & {*ports}, "ip")
        need(self.values.dhcp_server or ports != of_server, "dhcp_server")
        return ports

    def _ipv6(self, data: bytes) -> None:
        need(len(data) >= 40 and data[0] >> 4 == 6, "ip")
        source = data[8:24]
        protocol, at, fragment, later = self._chain(data)
        kind = -1
        if protocol == 58 and not later:
            need(len(data) > at, "nd")
            kind = data[at]
            if RS <= kind <= REDIRECT:
                need(at == 40, "nd")
                self._discovery(kind, data)
        if protocol == 17 and not later:
            self._udp(data[at:], fragment, (547, 546))
        if not self.owns_or_link_local(source):
            unset = not any(source) and not fragment
            need(unset and (kind == NS or kind in MLD_REPORTS), "ip")

    def _chain(self, data: bytes) -> tuple[int, int, bool, bool]:
        """Return the last header's protocol, where it is, and if it is in a fragment, a later one.

        No more than eight extension headers are followed.
        """
        protocol, at, fragment = data[6], 40, False
        for _ in range(8):
            if protocol not in EXTENSIONS:
                break
            need(len(data) >= at + 4, "nd")
            inner, size = data[at], data[at + 1]
            if protocol == 44:
                fragment = True
                if number(data, at + 2) & 0xFFF8:
                    return inner, at + 8, True, True
                at += 8
            else:
                at += (size + 2) * 4 if protocol == 51 else (size + 1) * 8
            protocol = inner
        need(protocol not in EXTENSIONS, "nd")
        return protocol, at, fragment, False

    def _discovery(self, kind: int, data: bytes) -> None:
        if kind in (RA, REDIRECT):
            need(self.values.router, "router")
            need(data[7] == 255, "nd")
            return
        end, options = 40 + number(data, 4), 40 + (8 if kind == RS else 24)
        need(data[7] == 255 and options <= end <= len(data), "nd")
        self._options(data[options:end])
        if kind == NA or (kind == NS and not any(data[8:24])):
            need(self.owns_or_link_local(data[48:64]), "nd")

    def _options(self, data: bytes) -> None:
        for _ in range(8):
            if not data:
                return
            need(len(data) >= 2 and data[1] > 0 and len(data) >= data[1] * 8, "nd")
            if data[0] in (1, 2):
                need(data[1] == 1 and data[2:8] in self.macs, "nd")
            data = data[data[1] * 8 :]
        need(not data, "nd")
