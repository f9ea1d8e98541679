"""Uplinks: every key, what goes with which mode, and the message when it is wrong."""

import pytest

from cni.config import network as config
from cni.config.network import Bandwidth, TapConf
from cni.config.uplinks import Chained, LinuxUplink, MasterUplink, OvsUplink
from cni.errors import BadConfig, UnsupportedField
from cni.spec.types import Request
from tests.unit.test_config import BASE, IPAM, PREV, parse

UPLINKS = {
    "linux": {"linux": {"bridge": "br0"}},
    "ovs": {"ovs": {"bridge": "br0"}},
    "master": {"master": "eth1"},
    "chained": {"prevResult": PREV},
}
FITTING = {(mode, uplink) for mode, uplinks in config.MODES.items() for uplink in uplinks}


def ovs(**keys):
    return {"ovs": {"bridge": "br0", **keys}}


@pytest.mark.parametrize("mode", config.MODES)
@pytest.mark.parametrize("uplink", UPLINKS)
def test_each_mode_with_each_uplink(mode, uplink):
    conf = {"mode": mode, **UPLINKS[uplink]}
    if (mode, uplink) in FITTING:
        assert parse(conf).uplink.kind == uplink
        return
    with pytest.raises(BadConfig, match=f"^mode: {mode} does not go with the uplink {uplink}") as e:
        parse(conf)
    for fitting in config.MODES[mode]:
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
        ({"linux": {"bridge": "br0"}, "prevResult": PREV}, LinuxUplink("br0")),
        ({"prevResult": PREV}, Chained()),
    ],
)  # fmt: skip
def test_uplinks(conf, expected):
    assert parse(conf).uplink == expected


@pytest.mark.parametrize(
    ("args", "ids"),
    [
        ({"K8S_POD_NAME": "p", "K8S_POD_NAMESPACE": "ns"}, {"iface-id": "p.ns"}),
        ({"K8S_POD_NAME": "p"}, {}),
        ({}, {}),
    ],
)
def test_the_logical_port_is_the_pods_when_the_runtime_tells_whose(args, ids):
    assert parse(ovs(), args).uplink.external_ids == ids
    own = parse(ovs(external_ids={"iface-id": "mine"}), args)
    assert own.uplink.external_ids == {"iface-id": "mine"}


KUBELET = {"K8S_POD_NAME": "p", "K8S_POD_NAMESPACE": "ns"}


@pytest.mark.parametrize(
    ("args", "ids"),
    [
        (KUBELET, {"iface-id": "p.ns", "iface-status": "active"}),
        ({**KUBELET, "K8S_POD_UID": "u"},
         {"iface-id": "p.ns", "iface-status": "active", "iface-id-ver": "u"}),
    ],
)  # fmt: skip
def test_a_logical_port_of_ovn(args, ids):
    assert parse(ovs(ovn=True), args).uplink == OvsUplink("br0", external_ids=ids, ovn=True)


def test_a_logical_port_must_have_a_name():
    with pytest.raises(BadConfig, match=r"^ovs\.external_ids\.iface-id: required with ovs\.ovn"):
        parse(ovs(ovn=True), {"K8S_POD_NAME": "p"})
    named = parse(ovs(ovn=True, external_ids={"iface-id": "mine"})).uplink
    assert named.external_ids == {"iface-id": "mine", "iface-status": "active"}
    gone = config.parse(Request("DEL", "1.1.0", {**BASE, **ovs(ovn=True)}, b"", {}, {}))
    assert "iface-id" not in gone.uplink.external_ids


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
        *((ovs(trunk=v), "ovs.trunk") for v in ("1", {}, 7)),
        *((ovs(trunk=[v]), "ovs.trunk[0]") for v in (7, {}, {"id": 1, "minID": 2}, {"minID": 1})),
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
def test_wrong_values_are_named_by_their_key(conf, key):
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
def test_unknown_keys_are_named(conf, key):
    with pytest.raises(UnsupportedField, match=f"^{key}: unknown key"):
        parse(conf)


def test_who_may_open_the_socket():
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
def test_bandwidth(conf, expected):
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
def test_bad_bandwidth_is_named_by_its_key(rates, key, where):
    conf = {"runtimeConfig": {"bandwidth": rates}} if where else {"bandwidth": rates}
    with pytest.raises(BadConfig) as error:
        parse({**ovs(), **conf})
    assert error.value.msg.startswith(f"{where}{key}: ")


def test_a_del_needs_no_prev_result_to_be_chained():
    assert config.parse(Request("DEL", "1.1.0", BASE, b"", {}, {})).uplink == Chained()
