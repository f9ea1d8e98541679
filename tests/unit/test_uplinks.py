"""Uplinks and bandwidth: each key, the modes that it goes with, the error when it is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from cni.config.network import NetConf
from cni.config.nic import TapConf
from cni.config.uplinks import Chained, LinuxUplink, MasterUplink, OvsUplink, Uplink
from cni.errors import BadConfig, UnsupportedField
from cni.modes import MODES
from cni.spec.types import Bandwidth
from tests.unit.purekit import IPAM, PREV, parse

UPLINKS: dict[str, dict[str, Any]] = {
    "linux": {"linux": {"bridge": "br0"}},
    "ovs": {"ovs": {"bridge": "br0"}},
    "master": {"master": "eth1"},
    "chained": {"prevResult": PREV},
}
FITTING = {(mode, uplink) for mode in MODES for uplink in MODES[mode].rules.uplinks}


def ovs(**keys: Any) -> dict[str, Any]:
    return {"ovs": {"bridge": "br0", **keys}}


def ovs_uplink(conf: NetConf) -> OvsUplink:
    assert isinstance(conf.uplink, OvsUplink)
    return conf.uplink


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("uplink", UPLINKS)
def test_each_mode_with_each_uplink(mode: str, uplink: str) -> None:
    conf = {"mode": mode, **UPLINKS[uplink]}
    if (mode, uplink) in FITTING:
        assert parse(conf).uplink.kind == uplink
        return
    with pytest.raises(BadConfig, match=f"^mode: {mode} does not go with the uplink {uplink}") as e:
        parse(conf)
    for fitting in MODES[mode].rules.uplinks:
        assert fitting in e.value.msg


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        (ovs(), OvsUplink("br0")),
        (ovs(vlan=7), OvsUplink("br0", 7)),
        (ovs(trunk=[{"id": 9}, {"minID": 3, "maxID": 5}, {"id": 4}]),
         OvsUplink("br0", trunk=(3, 4, 5, 9))),
        (ovs(trunk=None, external_ids=None), OvsUplink("br0")),
        (ovs(external_ids={"iface-id": "lsp"}), OvsUplink("br0", external_ids={"iface-id": "lsp"})),
        ({"mode": "macvtap", "master": "eth1"}, MasterUplink("eth1")),
        ({"prevResult": PREV}, Chained()),
    ],
)  # fmt: skip
def test_uplinks(conf: dict[str, Any], expected: Uplink) -> None:
    assert parse(conf).uplink == expected


@pytest.mark.parametrize(
    ("args", "ids"),
    [
        ({"K8S_POD_NAME": "p", "K8S_POD_NAMESPACE": "ns"}, {"iface-id": "p.ns"}),
        ({"K8S_POD_NAME": "p"}, {}),
        ({}, {}),
    ],
)
def test_the_logical_port_is_the_pods_when_the_runtime_tells_whose(
    args: dict[str, str], ids: dict[str, str]
) -> None:
    assert ovs_uplink(parse(ovs(), args)).external_ids == ids
    own = parse(ovs(external_ids={"iface-id": "mine"}), args)
    assert ovs_uplink(own).external_ids == {"iface-id": "mine"}


NO_TRUNK_LISTS: list[Any] = ["1", {}, 7]
NO_TRUNKS: list[Any] = [7, {}, {"id": 1, "minID": 2}, {"minID": 1}]
KUBELET = {"K8S_POD_NAME": "p", "K8S_POD_NAMESPACE": "ns"}


@pytest.mark.parametrize(
    ("args", "ids"),
    [
        (KUBELET, {"iface-id": "p.ns", "iface-status": "active"}),
        ({**KUBELET, "K8S_POD_UID": "u"},
         {"iface-id": "p.ns", "iface-status": "active", "iface-id-ver": "u"}),
    ],
)  # fmt: skip
def test_a_logical_port_of_ovn(args: dict[str, str], ids: dict[str, str]) -> None:
    assert parse(ovs(ovn=True), args).uplink == OvsUplink("br0", external_ids=ids, ovn=True)


def test_a_logical_port_must_have_a_name() -> None:
    with pytest.raises(BadConfig, match=r"^ovs\.external_ids\.iface-id: required with ovs\.ovn"):
        parse(ovs(ovn=True), {"K8S_POD_NAME": "p"})
    named = parse(ovs(ovn=True, external_ids={"iface-id": "mine"}))
    assert ovs_uplink(named).external_ids == {"iface-id": "mine", "iface-status": "active"}
    gone = parse(ovs(ovn=True), verb="DEL")
    assert "iface-id" not in ovs_uplink(gone).external_ids


@pytest.mark.parametrize(
    ("conf", "key"),
    [
        (ovs(bridge=""), "ovs.bridge"),
        (ovs(ovn="yes"), "ovs.ovn"),
        (ovs(ovn=True, vlan=7), "ovs.vlan"),
        (ovs(ovn=True, trunk=[{"id": 1}]), "ovs.trunk"),
        (ovs(external_ids={"ovn-installed": "true"}), "ovs.external_ids.ovn-installed"),
        ({"ovs": {}}, "ovs.bridge"),
        ({"ovs": "br0"}, "ovs"),
        *((ovs(vlan=v), "ovs.vlan") for v in (0, 4095, "1")),
        *((ovs(trunk=v), "ovs.trunk") for v in NO_TRUNK_LISTS),
        *((ovs(trunk=[v]), "ovs.trunk[0]") for v in NO_TRUNKS),
        (ovs(trunk=[{"id": 1}, {"id": 4095}]), "ovs.trunk[1].id"),
        (ovs(trunk=[{"minID": 5, "maxID": 3}]), "ovs.trunk[0]"),
        *((ovs(external_ids={"a": v}), "ovs.external_ids.a") for v in (1, "", None)),
        (ovs(external_ids={"vmlink-owner": "x"}), "ovs.external_ids.vmlink-owner"),
        ({"mode": "macvtap", "master": "a/b"}, "master"),
        ({"mode": "macvtap", "master": {"interface": "eth1"}}, "master"),
        ({**ovs(), "linux": {"bridge": "br0"}}, "ovs"),
        ({"mode": "macvtap", "master": "eth1", "macvtap": {"mode": "tap"}}, "macvtap.mode"),
        ({**ovs(), "macvtap": {}}, "macvtap"),
        ({**ovs(), "placeholder": True}, "placeholder"),
        ({**ovs(), "mode": "tap", "placeholder": "yes"}, "placeholder"),
        ({**ovs(), "mode": "vhostuser", "tap": {}}, "tap"),
        ({**ovs(), "vhostuser": {"owner": 1}}, "vhostuser"),
        ({**ovs(), "mode": "tap", "resultStyle": "tc-redirect-tap"}, "resultStyle"),
        ({"prevResult": PREV, "mode": "macvtap", "macvtap": {"mode": "vepa"}}, "macvtap"),
        ({"prevResult": PREV, "mode": "macvtap", "ipam": IPAM}, "ipam"),
        ({**ovs(), "runtimeConfig": {"CNIDeviceInfoFile": "x"}},
         "runtimeConfig.CNIDeviceInfoFile"),
    ],
)  # fmt: skip
def test_wrong_values_are_named_by_their_key(conf: dict[str, Any], key: str) -> None:
    with pytest.raises(BadConfig) as error:
        parse(conf)
    assert error.value.msg.startswith(f"{key}: ")


@pytest.mark.parametrize(
    ("conf", "key"),
    [
        (ovs(gateway=True), "ovs.gateway"),
        ({**ovs(), "mode": "vhostuser", "vhostuser": {"name": "x"}}, "vhostuser.name"),
        ({"mode": "macvtap", "master": "eth1", "tap": {"name": "x"}}, "tap.name"),
        ({**ovs(), "bandwidth": {"rate": 1}}, "bandwidth.rate"),
    ],
)
def test_unknown_keys_are_named(conf: dict[str, Any], key: str) -> None:
    with pytest.raises(UnsupportedField, match=f"^{key}: unknown key"):
        parse(conf)


def test_who_may_open_the_socket() -> None:
    conf = {**ovs(), "mode": "vhostuser", "vhostuser": {"owner": 3, "group": 4}}
    assert parse(conf).tap == TapConf(3, 4)
    assert parse(conf, {"TC_REDIRECT_TAP_NAME": "fc0"}).tap.name == ""


RATES = {"ingressRate": 8000, "ingressBurst": 16000, "egressRate": 0, "egressBurst": 0}


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        ({}, None),
        ({"bandwidth": {}}, None),
        ({"bandwidth": {"ingressRate": 0, "ingressBurst": 0}}, None),
        ({"bandwidth": RATES}, Bandwidth(8000, 16000)),
        ({"bandwidth": {"egressRate": 1, "egressBurst": 2}}, Bandwidth(0, 0, 1, 2)),
        ({"bandwidth": {"egressRate": 1, "egressBurst": 2}, "runtimeConfig": {"bandwidth": RATES}},
         Bandwidth(8000, 16000)),
    ],
)  # fmt: skip
def test_bandwidth(conf: dict[str, Any], expected: Bandwidth | None) -> None:
    assert parse({**ovs(), **conf}).bandwidth == expected


@pytest.mark.parametrize(
    ("rates", "key"),
    [
        (5, "bandwidth"),
        ({"ingressRate": -1}, "bandwidth.ingressRate"),
        ({"egressRate": "1M"}, "bandwidth.egressRate"),
        ({"ingressRate": 1}, "bandwidth.ingressBurst"),
        ({"egressBurst": 1}, "bandwidth.egressRate"),
    ],
)
@pytest.mark.parametrize("where", ["", "runtimeConfig."])
def test_bad_bandwidth_is_named_by_its_key(rates: Any, key: str, where: str) -> None:
    conf = {"runtimeConfig": {"bandwidth": rates}} if where else {"bandwidth": rates}
    with pytest.raises(BadConfig) as error:
        parse({**ovs(), **conf})
    assert error.value.msg.startswith(f"{where}{key}: ")


def test_a_del_needs_no_prev_result_to_be_chained() -> None:
    assert parse({}, verb="DEL").uplink == Chained()


def test_an_uplink_of_its_own_is_the_first_of_a_chain() -> None:
    conf = {"linux": {"bridge": "br0"}, "prevResult": PREV}
    with pytest.raises(BadConfig, match=r"^prevResult: vmlink with an uplink of its own"):
        parse(conf)
    for verb in ("CHECK", "DEL"):
        assert parse(conf, verb=verb).uplink == LinuxUplink("br0")
