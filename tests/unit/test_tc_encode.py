"""Every encoder of traffic control messages against pyroute2's, byte for byte."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from pyroute2.netlink import nla
from pyroute2.netlink.rtnl.tcmsg import cls_matchall, cls_u32, sched_bpf, sched_tbf
from pyroute2.netlink.rtnl.tcmsg import tcmsg as pyr2_tcmsg

from cni.kernel import tc_encode
from cni.kernel.netlink_message import Message, encode
from cni.kernel.rtnl_decode import QdiscInfo, decode_qdisc
from tests.unit.purekit import CREATE_EXCL, REQUEST, pyroute


def tc(kind: int, flags: int, head: dict[str, int], attrs: list[Any]) -> bytes:
    return pyroute(pyr2_tcmsg, kind, flags, {"index": 3} | head, attrs)


CLSACT = {"handle": 0xFFFF0000, "parent": 0xFFFFFFF1}
ACTION = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": 8}


def filter_(kind: str, parent: int, options: Any) -> bytes:
    head = {"handle": 5, "parent": parent, "info": 77 << 16 | socket.htons(3)}
    return tc(44, CREATE_EXCL, head, [("TCA_KIND", kind), ("TCA_OPTIONS", options)])


def bpf_options() -> Any:
    return sched_bpf.get_parameters({"fd": 11, "name": "redir", "direct_action": True})


def u32_options() -> Any:
    options = cls_u32.get_parameters({"action": ACTION, "target": 0, "keys": []})
    # Without a class: that is for classful qdiscs.
    options["attrs"] = [each for each in options["attrs"] if each[0] != "TCA_U32_CLASSID"]
    return options


class TbfOptions(nla):  # type: ignore[misc]
    """pyroute2's, with what it lacks and without the rate tables that it adds."""

    nla_map = (
        ("TCA_TBF_UNSPEC", "none"),
        ("TCA_TBF_PARMS", "TbfParms"),
        ("TCA_TBF_RTAB", "none"),
        ("TCA_TBF_PTAB", "none"),
        ("TCA_TBF_RATE64", "uint64"),
        ("TCA_TBF_PRATE64", "uint64"),
        ("TCA_TBF_BURST", "uint32"),
    )

    class TbfParms(nla):  # type: ignore[misc]
        """struct tc_tbf_qopt."""

        fields = sched_tbf.options.tbf_parms.fields


class TbfMessage(pyr2_tcmsg):  # type: ignore[misc]
    nla_map = tuple(
        (name, "TbfOptions" if name == "TCA_OPTIONS" else kind) for name, kind in pyr2_tcmsg.nla_map
    )
    TbfOptions = TbfOptions


def tbf(rate: int, low32: int) -> bytes:
    parms = {"rate___reserved": 1, "rate": low32, "limit": 221_786}
    attrs = [("TCA_TBF_PARMS", parms), ("TCA_TBF_RATE64", rate), ("TCA_TBF_BURST", 65536)]
    options = [("TCA_KIND", "tbf"), ("TCA_OPTIONS", {"attrs": attrs})]
    return pyroute(TbfMessage, 36, CREATE_EXCL, {"index": 3, **ROOT}, options)


ROOT = {"handle": 0x47610000, "parent": 0xFFFFFFFF}
SIZES = {"burst": 65536, "limit": 221_786}
CASES = {
    "tbf": (tc_encode.add_tbf(3, 0x47610000, rate=6_250_000, **SIZES), tbf(6_250_000, 6_250_000)),
    "tbf, 64 bits": (tc_encode.add_tbf(3, 0x47610000, rate=2**33, **SIZES), tbf(2**33, 2**32 - 1)),
    "delete tbf": (tc_encode.del_tbf(3, 0x47610000), tc(37, REQUEST, ROOT, [("TCA_KIND", "tbf")])),
    "read the root": (tc_encode.get_root(3), tc(38, REQUEST | 0xC, {"parent": 0xFFFFFFFF}, [])),
    "add clsact": (
        tc_encode.add_clsact(3),
        tc(36, CREATE_EXCL, CLSACT, [("TCA_KIND", "clsact")]),
    ),
    "delete clsact": (tc_encode.del_clsact(3), tc(37, REQUEST, CLSACT, [("TCA_KIND", "clsact")])),
    "bpf": (
        tc_encode.add_bpf_filter(3, 11, "redir", priority=77, handle=5),
        filter_("bpf", 0xFFFFFFF2, bpf_options()),
    ),
    "bpf, egress": (
        tc_encode.add_bpf_filter(3, 11, "redir", ingress=False, priority=77, handle=5),
        filter_("bpf", 0xFFFFFFF3, bpf_options()),
    ),
    "matchall": (
        tc_encode.add_mirred_filter(3, 8, kind="matchall", priority=77, handle=5),
        filter_("matchall", 0xFFFFFFF2, cls_matchall.get_parameters({"action": ACTION})),
    ),
    "u32": (
        tc_encode.add_mirred_filter(3, 8, kind="u32", priority=77, handle=5),
        filter_("u32", 0xFFFFFFF2, u32_options()),
    ),
    "delete filter": (
        tc_encode.del_filter(3, kind="bpf", priority=77, handle=5),
        tc(
            45,
            REQUEST,
            {"handle": 5, "parent": 0xFFFFFFF2, "info": 77 << 16 | socket.htons(3)},
            [("TCA_KIND", "bpf")],
        ),
    ),
}


@pytest.mark.parametrize(("message", "expected"), CASES.values(), ids=CASES)
def test_as_pyroute2(message: Message, expected: bytes) -> None:
    assert encode(message, 7).hex() == expected.hex()


def test_a_handle_of_0_would_be_all() -> None:
    with pytest.raises(ValueError, match="every filter"):
        tc_encode.del_filter(3, kind="bpf", priority=1, handle=0)


@pytest.mark.parametrize("rate", [6_250_000, 2**33])
def test_a_bucket_is_read_as_it_was_written(rate: int) -> None:
    message = tc_encode.add_tbf(3, 0x47610000, rate=rate, **SIZES)
    assert decode_qdisc(message.body) == QdiscInfo("tbf", 0x47610000, 0xFFFFFFFF, rate)
