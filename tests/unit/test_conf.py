"""conf/: vmlink accepts each example, and there is an example of each mode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cni.config import network
from cni.config.network import NetConf
from cni.config.uplinks import OvsUplink
from cni.modes import MODES, rules
from cni.spec.types import Request
from tests.unit.purekit import PREV

CONF = Path(__file__).parents[2] / "conf"
LISTS: dict[str, Any] = {
    path.name: json.loads(path.read_text()) for path in CONF.glob("*.conflist")
}


POD = {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "web"}


def parsed(name: str) -> NetConf:
    """The entry of vmlink in a list, as a runtime would pass it to the plugin."""
    given = LISTS[name]
    (place,) = [n for n, p in enumerate(given["plugins"]) if p["type"] == "vmlink"]
    conf = {**given["plugins"][place], "cniVersion": given["cniVersion"], "name": given["name"]}
    conf |= {"prevResult": PREV} if place else {}
    return network.parse(Request("ADD", given["cniVersion"], conf, b"", {}, POD), rules())


@pytest.mark.parametrize("name", LISTS)
def test_an_example_is_taken(name: str) -> None:
    assert parsed(name).mode in MODES


def test_ports_of_kube_ovn_are_ovns() -> None:
    """Readiness and the check for a second Interface with the logical port apply then."""
    uplink = parsed("10-vmlink-kubeovn.conflist").uplink
    assert isinstance(uplink, OvsUplink)
    assert uplink.ovn


def test_each_mode_has_an_example() -> None:
    assert {parsed(name).mode for name in LISTS} == set(MODES)
