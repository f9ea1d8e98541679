"""linux.vlan: a bridge's port is in this VLAN and in no other, whatever the bridge's default is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import Node
from cni.spec.types import AttachmentKey
from tests.netns.attach_ways import vlan_missing

KEY = AttachmentKey("c", "eth0")
PORTS = {"tc": KEY.host_link, "veth": KEY.host_link, "tap": KEY.tap_link}


@pytest.fixture(params=[0, 1, 7], ids="vlan_default_pvid {}".format)
def bridge(node: Node, request: pytest.FixtureRequest) -> Iterator[str]:
    if reason := vlan_missing():
        pytest.skip(f"the kernel cannot filter VLANs on a bridge: {reason}")
    options = f"type bridge vlan_filtering 1 vlan_default_pvid {request.param}"
    node.run(f"ip link add vlans up {options}".split())
    yield "vlans"
    node.run("ip link del vlans".split())


def vlans(node: Node, port: str) -> list[Any]:
    shown = json.loads(node.run(f"bridge -json vlan show dev {port}".split()).stdout)
    return [vlan for each in shown for vlan in each["vlans"]]


@pytest.mark.parametrize("mode", PORTS)
def test_a_port_is_in_its_vlan_alone(node: Node, pod: Path, bridge: str, mode: str) -> None:
    port, linux = PORTS[mode], {"bridge": bridge, "vlan": 42}
    conf = {"cniVersion": "1.0.0", "name": "net", "type": "vmlink", "mode": mode, "linux": linux}
    try:
        check = {**conf, "prevResult": node.call("ADD", conf, "c", pod).expect()}
        assert vlans(node, port) == [{"vlan": 42, "flags": ["PVID", "Egress Untagged"]}]
        node.call("CHECK", check, "c", pod).expect()
        for vids, words in (("20-22", "20-22, 42 PVID untagged"), ("42 pvid", "20-22, 42 PVID")):
            node.run(f"bridge vlan add dev {port} vid {vids}".split())
            answer = node.call("CHECK", check, "c", pod)
            assert (answer.code, answer.out["msg"].partition("found ")[2]) == (104, words)
        node.run(f"bridge vlan del dev {port} vid 1-4094".split())
        assert "found none" in node.call("CHECK", check, "c", pod).out["msg"]
    finally:
        node.call("DEL", conf, "c", pod).expect()
