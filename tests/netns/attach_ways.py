"""Every way to attach a pod: mode, uplink, redirect engine, IPAM plugin, options."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.testbed.node import Node
from cni.attach.plan import Plan
from cni.config import network, uplinks
from cni.errors import BadConfig
from cni.kernel import redirect
from cni.modes import MODES, rules
from cni.spec import request as cni_request
from cni.spec.types import AttachmentKey

KEY = AttachmentKey(f"c{os.getpid()}", "eth0")  # /dev has other runs' macvtaps, too
# Kata finds a socket in /tmp by the address, and other runs have theirs there.
KATAS = f"10.{os.getpid() >> 8 & 0xFF}.{os.getpid() & 0xFF}"
EXECUTED = "executed-ipam"
UPLINKS: dict[str, dict[str, Any]] = {
    "linux": {"linux": {"bridge": "br0"}},
    "linux with gateway": {"linux": {"bridge": "br0", "gateway": True}},
    "linux with gateway and vlan": {"linux": {"bridge": "br0", "gateway": True, "vlan": 100}},
    "ovs": {"ovs": {"bridge": "br0"}},
    "master": {"master": "nic0"},
    "chained": {
        "prevResult": {
            "interfaces": [{"name": "eth0", "sandbox": "pod"}],
            "ips": [{"address": "10.5.0.2/24", "interface": 0}],
        }
    },
}
LIMIT = {"ingressRate": 8_000_000, "ingressBurst": 80_000}
LIMIT |= {"egressRate": 8_000_000, "egressBurst": 80_000}
LIMITED = {
    f"{name} with bandwidth": {**UPLINKS[name], "bandwidth": LIMIT}
    for name in ("linux", "master", "chained")
}
# What a pod sends, ovs-vswitchd polices; not every kernel has act_police.
TOWARDS = {key: value for key, value in LIMIT.items() if key.startswith("ingress")}
LIMITED["ovs with bandwidth"] = {**UPLINKS["ovs"], "bandwidth": TOWARDS}
INFO = {"runtimeConfig": {"CNIDeviceInfoFile": "/device"}}  # in the lab: see Way.stdin
DAN = {"runtime": "kata", "placeholder": True}
FIXED = {"args": {"cni": {"ips": ["10.9.0.99"]}}}
PLACEHELD = {
    "tc": {
        "linux with a fixed address": {**UPLINKS["linux"], **FIXED},
        "chained with guard": {**UPLINKS["chained"], "guard": True},
    },
    "macvtap": {"master with guard": {**UPLINKS["master"], "guard": True}},
    "tap": {
        "linux with guard": {**UPLINKS["linux"], "guard": True},
        "ovs with placeholder": {**UPLINKS["ovs"], "placeholder": True},
        "linux with gateway and placeholder": {**UPLINKS["linux with gateway"], **DAN},
    },
    "vhostuser": {"ovs for kata-go": {**UPLINKS["ovs"], "runtime": "kata-go", **INFO}},
}
ANNOTATIONS = {
    f"ovn.kubernetes.io/{key}": value
    for key, value in {
        "ip_address": "10.9.0.2",
        "cidr": "10.9.0.0/24",
        "gateway": "10.9.0.1",
        "mac_address": "02:00:00:00:09:02",
        "logical_switch": "ls",
        "allocated": "true",
        "routed": "true",
    }.items()
}
TOLD = {"io.kubernetes.cri.pod-annotations": ANNOTATIONS}
# That they come from elsewhere makes no difference to the mode's own steps.
KUBEOVN = {**UPLINKS["ovs"], "kubeovn": {"provider": "ovn"}, "runtimeConfig": TOLD}
POD = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod"
NEVER_STAYS = ("file ", "address ", "row ", "/")  # as Lab.contents has it
BOTH = ("host-local", EXECUTED)
IPAMS = {"linux": BOTH, "ovs": BOTH[:1], "master": BOTH, "chained": ("none",)}


@dataclass(frozen=True)
class Way:
    """One way to attach a pod, and the steps that it takes."""

    name: str
    conf: dict[str, Any]
    steps: tuple[str, ...]
    prepared: tuple[str, ...] = ()  # those of them that a pool has done

    def phase(self, step: str) -> str:
        return "bind" if step in self.prepared else "do"

    def stdin(self, node: Node) -> dict[str, Any]:
        conf = dict(self.conf)
        if "ipam" in conf:
            first = KATAS if conf.get("runtime") == "kata-go" else "10.9.0"
            conf["ipam"] = {**node.ipam(f"{first}.0/24", "fd00:9::/64"), **conf["ipam"]}
        if conf.get("runtimeConfig") == INFO["runtimeConfig"]:
            conf["runtimeConfig"] = {"CNIDeviceInfoFile": str(device_info(node))}
        return conf

    @property
    def switch(self) -> str:
        """What the node has of Open vSwitch."""
        needed = "dpdk" if self.conf["mode"] == "vhostuser" else "ovs"
        return needed if "ovs" in self.conf else ""


def device_info(node: Node) -> Path:
    return node.lab.dir / "info" / "device.json"


def ways(modes: Iterable[str]) -> Iterator[Way]:
    """Every way to attach a pod in these modes that their rules allow."""
    named = {key for name in UPLINKS for key in UPLINKS[name]}
    assert named == {*uplinks.UPLINKS, "prevResult"}
    for mode in modes:
        kubeovn = {"ovs with kubeovn": KUBEOVN} if mode == "tap" else {}
        for uplink, keys in (UPLINKS | LIMITED | PLACEHELD.get(mode, {}) | kubeovn).items():
            engines = redirect.ENGINES if (mode, uplink) == ("tc", "chained") else ("auto",)
            for engine in engines:
                # Who gives an address has nothing to do with limits and placeholders.
                kinds = IPAMS[uplink.split()[0]][: None if uplink in UPLINKS else 1]
                kinds = ("none",) if "kubeovn" in keys else kinds
                for kind in kinds:
                    conf: dict[str, Any] = {
                        "cniVersion": "1.0.0",
                        "name": "net",
                        "type": "vmlink",
                        "mode": mode,
                    }
                    conf |= {"redirect": engine, **keys}
                    conf |= {} if kind == "none" else {"ipam": {"type": kind}}
                    if plan := plan_of(mode, conf):
                        name = f"{mode}, {uplink}, {engine}, ipam {kind}"
                        yield Way(name, conf, steps_of(plan))
                        if (mode, uplink) == ("tap", "ovs"):
                            prepared = tuple(type(step).__name__ for step in plan.prepare)
                            yield Way(f"{name}, pool", conf, steps_of(plan), prepared)


def plan_of(mode: str, conf: dict[str, Any]) -> Plan | None:
    """None where the combination makes no sense."""
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": KEY.container_id, "CNI_IFNAME": KEY.ifname}
    try:
        request = cni_request.parse({**env, "CNI_NETNS": "pod"}, json.dumps(conf).encode())
        return MODES[mode].plan(KEY, network.parse(request, rules()))
    except BadConfig:
        return None


def steps_of(plan: Plan) -> tuple[str, ...]:
    names = tuple(type(step).__name__ for step in plan.steps)
    assert len(set(names)) == len(names), "a fault is aimed by the name of its step"
    return (*names, "Commit")


WAYS = list(ways(MODES))


@cache
def vlan_missing() -> str:
    """What the kernel says to a bridge that filters, and to a VLAN interface on it."""
    with Node() as node:
        for command in (
            "ip link add br0 type bridge vlan_filtering 1",
            "ip link add link br0 name br0.100 type vlan id 100",
        ):
            if said := node.run(command.split(), check=False).stderr:
                return said.splitlines()[0]
    return ""
