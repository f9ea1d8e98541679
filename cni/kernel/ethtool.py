"""TX checksum offload of a link, read and turned off, by ethtool's netlink family (Linux 5.6).

With it, the sender leaves the checksum of a packet to the link, and may send packets larger than
the MTU, which the link cuts (TSO). Links are those of the calling thread's namespace. An ioctl
would take a name, see link_index.py. Sources: Documentation/networking/ethtool-netlink.rst,
FEATURES_GET and FEATURES_SET; linux/ethtool_netlink.h, linux/genetlink.h.
"""

from __future__ import annotations

import errno as errnos
import struct
from functools import cache

from cni.kernel.netlink import Netlink, refused
from cni.kernel.netlink_message import (
    NLA_F_NESTED,
    NLM_F_REQUEST,
    Message,
    attr,
    attributes,
    each_attribute,
    text,
    u32,
)

NETLINK_GENERIC = 16
GENL_ID_CTRL, CTRL_CMD_GETFAMILY = 16, 3
CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 1, 2
FEATURES_GET, FEATURES_SET = 11, 12
HEADER, WANTED, ACTIVE = 1, 3, 4  # ETHTOOL_A_FEATURES_*
_OMIT_REPLY = 2
_BITS, _BIT, _BIT_NAME = 3, 1, 2  # of a bitset, of its bits, of a bit
# What ethtool(8) calls tx-checksumming; a link has some of them.
TX_CHECKSUMS = tuple(
    f"tx-checksum-{kind}" for kind in ("ipv4", "ip-generic", "ipv6", "fcoe-crc", "sctp")
)


def tx_checksum(index: int) -> bool:
    """Whether a link has TX checksum offload on. Raises NotFound, NetlinkError."""
    what = f"read TX checksum offload of link {index}"
    with Netlink(protocol=NETLINK_GENERIC) as netlink:
        message = get_features(_family(), index, what)
        answer = netlink.ask(message, message.type)
    if answer is None:
        raise refused(errnos.ENODEV, what)
    return any(name in TX_CHECKSUMS for name in active(answer))


def stop_tx_checksum(index: int) -> None:
    """Turn it off: packets then enter the link with their checksums, and no larger than its MTU.

    Raises NotFound, NetlinkError.
    """
    what = f"turn TX checksum offload off on link {index}"
    with Netlink(protocol=NETLINK_GENERIC) as netlink:
        netlink.batch(drop_features(_family(), index, TX_CHECKSUMS, what))


def get_features(family: int, index: int, what: str) -> Message:
    """Ask for the features of a link, each by its name."""
    body = struct.pack("=BBH", FEATURES_GET, 1, 0) + attr(NLA_F_NESTED | HEADER, u32(1, index))
    return Message(family, NLM_F_REQUEST, body, what)


def drop_features(family: int, index: int, names: tuple[str, ...], what: str) -> Message:
    """Turn features of a link off; those that it does not have are ignored."""
    header = u32(1, index) + u32(3, _OMIT_REPLY)
    bits = b"".join(attr(NLA_F_NESTED | _BIT, text(_BIT_NAME, name)) for name in names)
    body = struct.pack("=BBH", FEATURES_SET, 1, 0) + attr(NLA_F_NESTED | HEADER, header)
    body += attr(NLA_F_NESTED | WANTED, attr(NLA_F_NESTED | _BITS, bits))
    return Message(family, NLM_F_REQUEST, body, what)


@cache
def _family() -> int:
    """The message type of the family, which is the same in all namespaces."""
    what = "find ethtool's netlink family"
    body = struct.pack("=BBH", CTRL_CMD_GETFAMILY, 1, 0) + text(CTRL_ATTR_FAMILY_NAME, "ethtool")
    with Netlink(protocol=NETLINK_GENERIC) as netlink:
        answer = netlink.ask(Message(GENL_ID_CTRL, NLM_F_REQUEST, body, what), GENL_ID_CTRL)
    if answer is None:
        reason = "the kernel has none; it takes Linux 5.6 with CONFIG_ETHTOOL_NETLINK"
        raise refused(errnos.EOPNOTSUPP, what, reason)
    family: int = struct.unpack("=H", attributes(answer, 4)[CTRL_ATTR_FAMILY_ID])[0]
    return family


def active(payload: bytes) -> list[str]:
    """Decode the names of the features that are on."""
    bitset = attributes(attributes(payload, 4).get(ACTIVE, b""))
    bits = (attributes(bit) for _, bit in each_attribute(bitset.get(_BITS, b"")))
    return [bit[_BIT_NAME].rstrip(b"\0").decode() for bit in bits]
