"""vmlink behind plugins that say less of the pod's interface than they might: black box."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import Node
from tests.contract.cnikit import (
    KEY,
    VERSIONS,
    attached,
    chained,
    config,
    fails,
    foreign,
    left,
    links,
    run,
    shown,
    silent,
)

HOST_LINK = {"name": "cali1234", "mac": "ee:ee:ee:ee:ee:ee"}
IPS = [{"address": "10.5.0.2/24"}]
PREVIOUS: dict[str, dict[str, Any]] = {
    "Calico": {"interfaces": [{"name": HOST_LINK["name"]}], "ips": IPS},
    "AWS": {"interfaces": [HOST_LINK], "ips": [{**IPS[0], "interface": 0}]},
    "no interfaces": {"ips": [{**IPS[0], "version": "4"}], "routes": None, "dns": {}},
    "nothing": {},
}


def has_address(prev: dict[str, Any]) -> list[str]:
    return [ip["address"] for ip in prev.get("ips", [])]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("style", ["plain", "tc-redirect-tap"])
@pytest.mark.parametrize("prev", PREVIOUS.values(), ids=PREVIOUS)
def test_prev_result_without_a_sandbox(
    node: Node, pod: Path, prev: dict[str, Any], style: str, version: str
) -> None:
    foreign(node, pod)
    conf = chained(node, pod, prevResult=prev, resultStyle=style, cniVersion=version)
    with attached(node, pod, conf) as result:
        here = len(prev.get("interfaces", []))
        eth0, tap = result["interfaces"][here : here + 2]
        assert (eth0["name"], eth0["sandbox"]) == ("eth0", str(pod))
        assert eth0["mac"] == shown(node, pod, "eth0")["address"]
        for_go_sdk = style == "tc-redirect-tap"
        assert (tap["name"], "sandbox" in tap) == (KEY.tap_link, for_go_sdk)
        owned = [here, here + 2] if for_go_sdk else [here]
        addresses = has_address(prev)
        assert [(ip["interface"], ip["address"]) for ip in result["ips"]] == [
            (index, address) for index in owned for address in addresses
        ]
        if version != "0.3.1":
            silent(run(node, "CHECK", pod, {**conf, "prevResult": result}))
            silent(run(node, "CHECK", pod, {**conf, "prevResult": prev}))
            gone = {**prev, "ips": [{"address": "10.5.0.99/24"}]}
            fails(run(node, "CHECK", pod, {**conf, "prevResult": gone}), 104, "10.5.0.99")
    assert links(pod) == left("chained")


def test_prev_result_of_another_interface_is_refused(node: Node, pod: Path) -> None:
    foreign(node, pod)
    prev = {"interfaces": [{"name": "net1", "sandbox": str(pod)}]}
    fails(run(node, "ADD", pod, chained(node, pod, prevResult=prev)), 7, "no interface eth0")


@pytest.mark.parametrize("mode", ["tc", "veth", "tap", "placeholder", "chained"])
def test_check_needs_no_mac(node: Node, pod: Path, mode: str) -> None:
    if mode == "chained":
        foreign(node, pod)
        conf = chained(node, pod)
    elif mode == "placeholder":
        conf = config(node, mode="tap", placeholder=True)
    else:
        conf = config(node, mode=mode)
    with attached(node, pod, conf) as result:
        for interface in result["interfaces"]:
            interface.pop("mac", None)
        silent(run(node, "CHECK", pod, {**conf, "prevResult": result}))


def test_an_interface_that_is_down_is_set_up(node: Node, pod: Path) -> None:
    foreign(node, pod)
    node.run(["ip", "link", "set", "eth0", "down"], pod)
    conf = chained(node, pod)
    with attached(node, pod, conf) as result:
        assert "UP" in shown(node, pod, "eth0")["flags"]
        silent(run(node, "CHECK", pod, {**conf, "prevResult": result}))
    assert "UP" not in shown(node, pod, "eth0")["flags"]
    fails(run(node, "ADD", pod, {**conf, "tap": {"name": "lo"}}), 7, "tap.name")
    assert "UP" not in shown(node, pod, "eth0")["flags"]


def test_an_interface_that_is_up_stays_up(node: Node, pod: Path) -> None:
    foreign(node, pod)
    with attached(node, pod, chained(node, pod)):
        pass
    assert "UP" in shown(node, pod, "eth0")["flags"]
