"""The plans of all modes: stored as JSON, coherent, and equal where a prepared port fits."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from cni.attach import plan
from cni.attach.plan import IncoherentPlan, Plan, Step
from cni.modes import MODES
from cni.modes.steps.addresses import Addresses
from cni.modes.steps.bridge import Bridge
from cni.spec.types import AttachmentKey
from tests.unit.purekit import KEY, PREV, netconf

LINUX = {"linux": {"bridge": "br0"}}
GATEWAY = {"linux": {"bridge": "br0", "gateway": True, "vlan": 5}, "ipam": {"type": "host-local"}}
CHAINED = {"prevResult": PREV}
OVS = {"ovs": {"bridge": "br0", "vlan": 5, "trunk": [{"minID": 7, "maxID": 9}]}}
MASTER = {"master": "eth1", "ipam": {"type": "host-local"}}
INFO = {"runtimeConfig": {"CNIDeviceInfoFile": "/run/info/x.json"}}
LIMIT = {"bandwidth": {"egressRate": 8000, "egressBurst": 16000}}
PLANS: dict[str, dict[str, Any]] = {
    "tc": LINUX,
    "tc, all": {**GATEWAY, "queues": 4, "tap": {"owner": 1, "group": 0, "name": "tap0"}},
    "tc, fixed address": {**GATEWAY, "args": {"cni": {"ips": ["10.0.0.9"]}}},
    "tc, chained": CHAINED,
    "tc, chained, limited": {**CHAINED, **LIMIT},
    "veth": {**LINUX, "mode": "veth"},
    "veth, all": {**GATEWAY, "mode": "veth", "mtu": 1400, "mac": "02:00:00:00:00:09"},
    "veth, ovs": {**OVS, "mode": "veth"},
    "tap": {**GATEWAY, "mode": "tap", "placeholder": True, **LIMIT},
    "tap, guarded": {**LINUX, "mode": "tap", "guard": True},
    "tap, ovs": {**OVS, "mode": "tap", **LIMIT},
    "tap, kube-ovn": {**OVS, "mode": "tap", "kubeovn": {"provider": "ovn"}},
    "macvtap": {**MASTER, "mode": "macvtap", "tap": {"group": 107}, "queues": 2},
    "macvtap, passthru": {**MASTER, "mode": "macvtap", "macvtap": {"mode": "passthru"}},
    "macvtap, chained": {**CHAINED, "mode": "macvtap"},
    "vhostuser, all": {**OVS, "mode": "vhostuser", "placeholder": True, **INFO},
    "kata": {**GATEWAY, "runtime": "kata"},
    "kata, tap": {**GATEWAY, "runtime": "kata", "mode": "tap", "queues": 2},
    "kata, vhostuser": {**OVS, "runtime": "kata", "mode": "vhostuser"},
    "kata-go, macvtap": {**MASTER, "runtime": "kata-go", "mode": "macvtap"},
    "kata-go, vhostuser": {
        **OVS,
        "runtime": "kata-go",
        "mode": "vhostuser",
        "ipam": {"type": "host-local"},
        **INFO,
    },
}


def real(name: str) -> Plan:
    conf = netconf(**PLANS[name])
    return MODES[conf.mode].plan(KEY, conf)


@pytest.mark.parametrize("name", PLANS)
def test_real_plans_survive_json(name: str) -> None:
    made = real(name)
    again = Plan.from_json(json.loads(json.dumps(made.to_json())))
    assert again == made
    assert again.to_json() == made.to_json()


def test_those_plans_hold_every_kind_of_step_and_every_mode() -> None:
    held = {type(step) for name in PLANS for step in real(name).steps}
    assert held == {kind for kind in Step.kinds.values() if kind.__module__.startswith("cni.")}
    assert {netconf(**conf).mode for conf in PLANS.values()} == set(MODES)


@pytest.mark.parametrize(
    ("name", "links"),
    [
        ("tc", {"eth0", KEY.tap_link}),
        ("tc, all", {"eth0", "tap0"}),
        ("tc, chained", {KEY.tap_link}),
        ("veth", {"eth0"}),
        ("tap", {"eth0"}),
        ("tap, ovs", set()),
        ("macvtap", {"eth0"}),
        ("macvtap, chained", {KEY.tap_link}),
        ("kata", {"eth0"}),
        ("kata, tap", set()),
        ("kata, vhostuser", set()),
        ("kata-go, vhostuser", {"eth0"}),
    ],
)
def test_links_of_the_pod(name: str, links: set[str]) -> None:
    assert set(real(name).pod_links()) == links


def test_prepare_needs_no_address() -> None:
    made = real("tc, all")
    assert Addresses() in made.bind
    assert made.steps[0] == Addresses()
    assert {type(s) for s in made.prepare} == {Bridge}


@pytest.mark.parametrize("mode", ["tap", "vhostuser"])
def test_what_a_pod_decides_alone_does_not_tell_kits_apart(mode: str) -> None:
    def prepare(key: AttachmentKey, **change: Any) -> tuple[Step, ...]:
        conf = netconf(**{**OVS, "mode": mode, **change})
        return MODES[mode].plan(key, conf).prepare

    made = prepare(AttachmentKey.of_prepared("0123456789ab"))
    key = AttachmentKey("c2", "eth1", "0123456789ab")
    ingress = {k: v for k, v in LIMIT["bandwidth"].items() if k.startswith("ingress")}
    ids = {**OVS["ovs"], "external_ids": {"iface-id": "x"}}
    assert prepare(key, mac="02:00:00:00:00:99", bandwidth=ingress, ovs=ids) == made
    assert prepare(key, mtu=1280) != made
    assert prepare(key, ovs={**ids, "vlan": 7}) != made
    assert prepare(AttachmentKey("c2", "eth1", "0123456789ac")) != made


def test_a_union_has_each_step_once() -> None:
    one, two = real("tc"), real("veth")
    both = plan.union([one, two])
    assert set(both.steps) == {*one.steps, *two.steps}
    assert len(both.steps) < len(one.steps) + len(two.steps)


@pytest.mark.parametrize("name", PLANS)
def test_steps_are_values(name: str) -> None:
    for step in real(name).steps:
        with pytest.raises(dataclasses.FrozenInstanceError):
            step.__setattr__("ifname", "x")
        assert hash(step) == hash(Step.from_json(step.to_json()))


@pytest.mark.parametrize("name", PLANS)
def test_a_real_plan_without_a_fact_that_it_needs_is_refused(name: str) -> None:
    made = real(name)
    for step in made.steps:
        for kind in step.required():
            without = [other for other in made.bind if kind not in other.provides]
            prepare = [other for other in made.prepare if kind not in other.provides]
            with pytest.raises(IncoherentPlan, match="needs"):
                Plan(tuple(prepare), tuple(without))
