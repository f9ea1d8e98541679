"""The messages of ethtool's netlink family against pyroute2's, byte for byte."""

from __future__ import annotations

from typing import Any

from pyroute2.netlink import genlmsg
from pyroute2.netlink.generic.ethtool import ethtoolbitset, ethtoolheader

from cni.kernel import ethtool
from cni.kernel.netlink_message import encode
from tests.unit.purekit import REQUEST, pyroute

FAMILY = 21


class Features(genlmsg):  # type: ignore[misc]
    nla_map = (
        ("ETHTOOL_A_FEATURES_UNSPEC", "none"),
        ("ETHTOOL_A_FEATURES_HEADER", "ethtoolheader"),
        ("ETHTOOL_A_FEATURES_HW", "ethtoolbitset"),
        ("ETHTOOL_A_FEATURES_WANTED", "ethtoolbitset"),
        ("ETHTOOL_A_FEATURES_ACTIVE", "ethtoolbitset"),
    )
    ethtoolheader = ethtoolheader
    ethtoolbitset = ethtoolbitset


def features(command: int, *attrs: Any, **header: int) -> bytes:
    fields = {"cmd": command, "version": 1, "reserved": 0}
    head = [(f"ETHTOOL_A_HEADER_{name}", value) for name, value in header.items()]
    both = [("ETHTOOL_A_FEATURES_HEADER", {"attrs": head}), *attrs]
    return pyroute(Features, FAMILY, REQUEST, fields, both)


def bitset(*names: str) -> Any:
    bits = [
        ("ETHTOOL_A_BITSET_BITS_BIT", {"attrs": [("ETHTOOL_A_BITSET_BIT_NAME", name)]})
        for name in names
    ]
    return {"attrs": [("ETHTOOL_A_BITSET_BITS", {"attrs": bits})]}


def test_features_are_asked_for_as_by_pyroute2() -> None:
    message = ethtool.get_features(FAMILY, 3, "read")
    assert encode(message, 7).hex() == features(11, DEV_INDEX=3).hex()


def test_features_are_turned_off_as_by_pyroute2() -> None:
    names = ("tx-checksum-ipv4", "tx-checksum-sctp")
    message = ethtool.drop_features(FAMILY, 3, names, "set")
    wanted = ("ETHTOOL_A_FEATURES_WANTED", bitset(*names))
    assert encode(message, 7).hex() == features(12, wanted, DEV_INDEX=3, FLAGS=2).hex()


def test_the_features_that_are_on_are_read() -> None:
    names = ("tx-scatter-gather", "tx-checksum-ip-generic")
    both = [("ETHTOOL_A_FEATURES_WANTED", bitset("other"))]
    both.append(("ETHTOOL_A_FEATURES_ACTIVE", bitset(*names)))
    payload = features(11, *both, DEV_INDEX=3)[16:]
    assert ethtool.active(payload) == [*names]
    assert ethtool.active(features(11, DEV_INDEX=3)[16:]) == []
