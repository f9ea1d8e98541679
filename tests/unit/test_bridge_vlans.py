"""The VLANs of a bridge's port, as pyroute2 encodes and decodes them."""

from __future__ import annotations

import socket
from typing import Any

from pyroute2.netlink.rtnl.br_vlan import br_vlan_msg, br_vlan_query

from cni.kernel.bridge_vlans import VlanRange, decode_vlans, dump_vlans
from cni.kernel.netlink_message import encode
from tests.unit.purekit import REQUEST, pyroute

HEAD = {"family": socket.AF_BRIDGE, "ifindex": 9}
DUMP = 0x300


def entry(flags: int, vid: int, end: int = 0) -> tuple[str, Any]:
    attrs: list[Any] = [("BRIDGE_VLANDB_ENTRY_INFO", {"flags": flags, "vid": vid})]
    attrs += [("BRIDGE_VLANDB_ENTRY_RANGE", end)] if end else []
    attrs.append(("BRIDGE_VLANDB_ENTRY_STATE", 3))
    return ("BRIDGE_VLANDB_ENTRY", {"attrs": attrs})


def test_the_vlans_of_a_port_are_asked_for_as_by_pyroute2() -> None:
    expected = pyroute(br_vlan_query, 114, REQUEST | DUMP, HEAD, [])
    assert encode(dump_vlans(9), 7).hex() == expected.hex()


def test_the_vlans_of_a_port_are_read() -> None:
    entries = [entry(2 | 4, 1), entry(4, 2), entry(0, 20, 22), entry(0, 4094)]
    payload = pyroute(br_vlan_msg, 112, 0, HEAD, entries)[16:]
    found = decode_vlans(payload)
    assert found == [
        VlanRange(1, 1, pvid=True, untagged=True),
        VlanRange(2, 2, pvid=False, untagged=True),
        VlanRange(20, 22, pvid=False, untagged=False),
        VlanRange(4094, 4094, pvid=False, untagged=False),
    ]
    assert [str(each) for each in found] == ["1 PVID untagged", "2 untagged", "20-22", "4094"]
    assert decode_vlans(pyroute(br_vlan_msg, 112, 0, HEAD, [])[16:]) == []
