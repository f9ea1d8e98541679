"""The VLANs of a bridge's port: encoders and the decoder. Pure.

Layouts: linux/if_bridge.h. tests/unit/test_bridge_vlans.py compares them with pyroute2's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cni.kernel.netlink_message import NLM_F_REQUEST, Message, attr, attributes, each_attribute
from cni.kernel.rtnl_encode import (
    AF_BRIDGE,
    IFLA_AF_SPEC,
    RTM_DELLINK,
    VLAN_PVID,
    VLAN_UNTAGGED,
    ifinfo,
)
from cni.kernel.rtnl_queries import LIST

RTM_NEWVLAN, RTM_GETVLAN = 112, 114
IFLA_BRIDGE_VLAN_INFO = 2
RANGE_BEGIN, RANGE_END = 0x8, 0x10
_FIRST, _LAST = 1, 4094
_ENTRY, _INFO, _RANGE = 1, 1, 2  # BRIDGE_VLANDB_*


@dataclass(frozen=True)
class VlanRange:
    """VLANs from `first` to `last` that a port carries.

    `pvid`: frames without a tag come into it; `untagged`: frames leave it without a tag.
    """

    first: int
    last: int
    pvid: bool
    untagged: bool

    def __str__(self) -> str:
        """As bridge(8) shows it."""
        vids = f"{self.first}-{self.last}" if self.last > self.first else f"{self.first}"
        return vids + self.pvid * " PVID" + self.untagged * " untagged"


def delete_vlans(index: int) -> Message:
    """Take a bridge's port out of all its VLANs; none is success."""
    spec = attr(IFLA_BRIDGE_VLAN_INFO, struct.pack("=HH", RANGE_BEGIN, _FIRST))
    spec += attr(IFLA_BRIDGE_VLAN_INFO, struct.pack("=HH", RANGE_END, _LAST))
    body = ifinfo(index, family=AF_BRIDGE) + attr(IFLA_AF_SPEC, spec)
    return Message(RTM_DELLINK, NLM_F_REQUEST, body, f"take link {index} out of its VLANs")


def dump_vlans(index: int) -> Message:
    """List the VLANs of a bridge's port (Linux 5.6)."""
    body = struct.pack("=BxxxI", AF_BRIDGE, index)
    return Message(RTM_GETVLAN, LIST, body, f"list VLANs of link {index}")


def decode_vlans(payload: bytes) -> list[VlanRange]:
    """Decode the payload of an RTM_NEWVLAN."""
    entries = (attributes(entry) for kind, entry in each_attribute(payload, 8) if kind == _ENTRY)
    return [_decode(entry[_INFO], entry.get(_RANGE)) for entry in entries]


def _decode(info: bytes, end: bytes | None) -> VlanRange:
    flags, first = struct.unpack_from("=HH", info)
    last = struct.unpack("=H", end)[0] if end else first
    return VlanRange(first, last, bool(flags & VLAN_PVID), bool(flags & VLAN_UNTAGGED))
