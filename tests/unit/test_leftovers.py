"""A DEL's reading of a configuration that an ADD is refused for: what is kept, what is left out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cni.config import leftovers
from cni.config.network import NetConf
from cni.config.nic import TapConf
from cni.config.uplinks import Chained, LinuxUplink, OvsUplink
from cni.modes import rules
from cni.spec import request as spec
from cni.spec.types import Request
from tests.unit.purekit import BASE, IPAM

ENV = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
BRIDGE = {"bridge": "br0"}


def delete(conf: Any, **env: str) -> Request:
    stdin = conf if isinstance(conf, bytes) else json.dumps({**BASE, **conf}).encode()
    return spec.parse({**ENV, **env}, stdin)


def read(conf: dict[str, Any], **env: str) -> dict[str, NetConf]:
    found = leftovers.possible(delete(conf, **env), rules())
    return {each.mode: each for each in found}


def test_a_del_is_read_as_far_as_it_can_be() -> None:
    request = delete(
        {"cniVersion": "9.9.9", "name": "a/b"}, CNI_IFNAME="x" * 16, CNI_ARGS="MAC=m;Other=1;x"
    )
    assert (request.key, request.version, request.args) == (None, "1.1.0", {"MAC": "m"})
    assert request.conf["name"] == ""
    assert [flaw.partition(":")[0] for flaw in request.flaws] == [
        "CNI_IFNAME",
        "cniVersion",
        "CNI_ARGS",
        "name",
    ]
    assert delete({}).flaws == ()
    assert delete(b"\xff").conf == {"name": ""}


def test_every_mode_of_the_uplink() -> None:
    assert set(read({"linux": BRIDGE, "mode": "bogus"})) == {"tc", "veth", "tap"}
    assert set(read({"ovs": BRIDGE, "mode": 5})) == {"tc", "veth", "tap", "vhostuser"}
    assert set(read({"master": "nic", "bogus": 1})) == {"macvtap"}
    assert set(read({"bogus": 1})) == {"tc", "macvtap"}


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_what_is_beside_a_wrong_key_is_kept(first: bool) -> None:
    good: dict[str, Any] = {"tap": {"name": "guest0", "group": 5}, "ipam": IPAM, "linux": BRIDGE}
    wrong = {"mtu": 5, "bogus": {}, "prevResult": {"ips": [5]}, "runtimeConfig": {"mac": "x"}}
    conf = {**wrong, **good} if first else {**good, **wrong}
    tc = read({**conf, "tap": {**good["tap"], "owner": "root"}})["tc"]
    assert (tc.uplink, tc.ipam, tc.tap) == (
        LinuxUplink("br0"),
        "host-local",
        TapConf(group=5, name="guest0"),
    )
    assert tc.prev is None


def test_a_section_is_kept_in_part() -> None:
    ovs = {"trunk": [5], "vlan": 9999, "bridge": "br0", "external_ids": {"a": 1, "b": "2"}}
    uplink = read({"ovs": ovs, "bogus": 1})["tap"].uplink
    assert uplink == OvsUplink("br0", external_ids={"b": "2"})
    runtime = {"CNIDeviceInfoFile": "/x", "mac": "x"}
    found = read({"ovs": BRIDGE, "bogus": 1, "runtimeConfig": runtime})
    assert found["vhostuser"].device_info == "/x"


def test_args_are_kept_in_part() -> None:
    args = "TC_REDIRECT_TAP_UID=root;TC_REDIRECT_TAP_NAME=guest0"
    assert read({"linux": BRIDGE}, CNI_ARGS=args)["tc"].tap == TapConf(name="guest0")


def test_there_is_always_one() -> None:
    unreadable: list[dict[str, Any]] = [{"linux": 5}, {"linux": {}}, {"name": 5, "master": "a/b"}]
    for conf in unreadable:
        found = read(conf)
        assert {type(each.uplink) for each in found.values()} == {Chained}
    assert leftovers.possible(delete(b""), rules())


def test_ipam_needs_the_networks_name() -> None:
    assert read({"linux": BRIDGE, "name": "a/b", "ipam": IPAM})["tc"].ipam == ""


def test_a_mebibyte_is_read_in_time() -> None:
    """Each part that is tried costs a reading of the whole."""
    ids = {f"k{n}": "v" for n in range(50_000)}
    junk = {f"j{n}": 1 for n in range(10_000)}
    found = read({"ovs": {**BRIDGE, "external_ids": {**ids, "bad": 5}}, **junk, "ipam": IPAM})
    assert found["tap"].ipam == "host-local"
