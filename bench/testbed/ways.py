"""Every way to attach a guest: what a node needs for it, the network, and where its peer is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.testbed import switch
from bench.testbed.guest import Guest
from bench.testbed.node import PLUGINS, Node
from cni.config.network import REDIRECTS
from cni.kernel import redirect

ROUTES = ("0.0.0.0/0", "::/0")


@dataclass(frozen=True)
class Way:
    """A mode on an uplink; `redirect` only has a meaning for mode tc."""

    mode: str
    uplink: str
    redirect: str = ""

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.mode, self.uplink, self.redirect.replace("_", "-"))))

    @property
    def switch(self) -> str:
        """The Open vSwitch that its node must have, as `Node` takes it."""
        if self.uplink != "ovs":
            return ""
        return "dpdk" if self.mode == "vhostuser" else "userspace"

    def missing(self) -> str:
        """Why it cannot be shown here; empty when it can."""
        if self.uplink == "chained" and not (PLUGINS / "ptp").exists():
            return f"no plugin to chain on: {PLUGINS}/ptp is missing"
        if self.uplink == "ovs":
            return switch.missing(self.mode == "vhostuser")
        return redirect.supported()[self.redirect] if self.redirect else ""


@dataclass(frozen=True)
class Network:
    """A configuration, and the namespace from which its guests are reached."""

    conf: dict[str, Any]
    peer: Path


@dataclass(frozen=True)
class Attached:
    """A guest and the device that it was given; `peer` is the namespace that it is reached from."""

    guest: Guest
    device: dict[str, Any]
    peer: Path
    add_ms: float


WAYS = (
    *(Way("tc", "linux", engine) for engine in REDIRECTS if engine != "auto"),
    Way("tc", "chained"),
    Way("tc", "ovs"),
    Way("tap", "linux"),
    Way("tap", "ovs"),
    Way("macvtap", "master"),
    Way("macvtap", "chained"),
    Way("vhostuser", "ovs"),
)


def attach(
    way: Way, node: Node, container: str, stack: ExitStack, extra: Sequence[str] = ()
) -> Attached:
    """A pod, attached and with its guest booted; `stack` takes all back.

    `extra` are arguments of QEMU. Raises AssertionError, GuestError, SwitchError.
    """
    pod = node.pod(container)
    stack.callback(node.lab.drop, pod)
    net = network(way, node, container, pod, stack)
    added = node.call("ADD", net.conf, container, pod)
    added.expect()
    stack.callback(lambda: node.call("DEL", net.conf, container, pod).expect())
    guest, device = boot(way.mode, node, container, stack, extra)
    return Attached(guest, device, net.peer, added.ms)


def boot(
    mode: str, node: Node, container: str, stack: ExitStack, extra: Sequence[str] = ()
) -> tuple[Guest, dict[str, Any]]:
    """The guest of a container that is attached, and its device. Raises GuestError."""
    device = json.loads(node.run(node.ctl("device", container)).stdout)[0]
    guest = Guest.boot(
        prefix=node.ctl("exec", container, "--"),
        extra=extra,
        netns=str(node.path),
        shared_memory=mode == "vhostuser",
    )
    return stack.enter_context(guest), device


def network(way: Way, node: Node, container: str, pod: Path, stack: ExitStack) -> Network:
    """Make what the way needs on the node; `stack` takes it back."""
    conf = {"cniVersion": "1.0.0", "name": f"net-{way.uplink}", "type": "vmlink", "mode": way.mode}
    conf |= {"redirect": way.redirect} if way.redirect else {}
    maker: Callable[[Node, str, Path, ExitStack], tuple[dict[str, Any], Path]] = _UPLINKS[
        way.uplink
    ]
    extra, peer = maker(node, container, pod, stack)
    return Network(conf | extra, peer)


def _linux(node: Node, container: str, pod: Path, stack: ExitStack) -> tuple[dict[str, Any], Path]:
    ipam = node.ipam("10.88.0.0/24", "fd00:88::/64", routes=ROUTES)
    return {"linux": {"bridge": "demo0", "gateway": True}, "ipam": ipam}, node.path


def _ovs(node: Node, container: str, pod: Path, stack: ExitStack) -> tuple[dict[str, Any], Path]:
    """The node itself is the gateway, by the bridge's local port."""
    assert node.switch
    if "ovs0" not in node.switch.vsctl("list-br").split():
        node.switch.add_bridge("ovs0")
        for command in ("address add 10.89.0.1/24 dev ovs0", "link set ovs0 up"):
            node.run(["ip", *command.split()])
    return {
        "ovs": {"bridge": "ovs0"},
        "ipam": node.ipam("10.89.0.0/24", routes=ROUTES[:1]),
    }, node.path


def _chained(
    node: Node, container: str, pod: Path, stack: ExitStack
) -> tuple[dict[str, Any], Path]:
    """Behind Debian's ptp, a veth without any bridge."""
    ipam = node.ipam("10.90.0.0/24", routes=ROUTES[:1])
    ptp = {"cniVersion": "1.0.0", "name": "net-chained", "type": "ptp", "ipam": ipam}
    made = node.call("ADD", ptp, container, pod, plugin=PLUGINS / "ptp").expect()
    stack.callback(node.call, "DEL", ptp, container, pod, plugin=PLUGINS / "ptp")
    return {"prevResult": made}, node.path


def _master(node: Node, container: str, pod: Path, stack: ExitStack) -> tuple[dict[str, Any], Path]:
    """A NIC is one end of a veth; the world behind it, with the gateway, is the other."""
    world = node.pod(f"world-{container}")
    stack.callback(node.lab.drop, world)
    node.run(f"ip link add nic0 type veth peer name world netns {world}".split())
    stack.callback(node.run, ["ip", "link", "del", "nic0"])
    node.run(["ip", "link", "set", "nic0", "up"])
    for command in ("address add 10.91.0.1/24 dev world", "link set world up"):
        node.run(["ip", *command.split()], world)
    return {"master": "nic0", "ipam": node.ipam("10.91.0.0/24", routes=ROUTES[:1])}, world


_UPLINKS = {"linux": _linux, "ovs": _ovs, "chained": _chained, "master": _master}
