"""Each type of attachment: what a node needs for it, its network, and a guest that uses it."""

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
class AttachmentType:
    """A mode on an uplink; only mode tc has a `redirect`."""

    mode: str
    uplink: str
    redirect: str = ""

    @property
    def name(self) -> str:
        """MODE-UPLINK, and the redirect if there is one, as in results and tables."""
        return "-".join(filter(None, (self.mode, self.uplink, self.redirect.replace("_", "-"))))

    @property
    def switch(self) -> str:
        """The Open vSwitch that its node must have, as `Node` takes it."""
        if self.uplink != "ovs":
            return ""
        return "dpdk" if self.mode == "vhostuser" else "ovs"

    def missing(self) -> str:
        """Why this machine cannot run it; empty when it can."""
        if self.uplink == "chained" and not (PLUGINS / "ptp").exists():
            return f"no plugin to chain on: {PLUGINS}/ptp is missing"
        if self.uplink == "ovs":
            return switch.missing(self.mode == "vhostuser")
        return redirect.supported()[self.redirect] if self.redirect else ""


@dataclass(frozen=True)
class Network:
    """A network configuration, and the namespace from which its guests can be reached."""

    conf: dict[str, Any]
    peer: Path


@dataclass(frozen=True)
class AttachedGuest:
    """A guest, its device as vmlinkctl describes it, and the milliseconds of the ADD.

    `peer` is the namespace from which the guest can be reached.
    """

    guest: Guest
    device: dict[str, Any]
    peer: Path
    add_ms: float


ATTACHMENT_TYPES = (
    *(AttachmentType("tc", "linux", engine) for engine in REDIRECTS if engine != "auto"),
    AttachmentType("tc", "chained"),
    AttachmentType("tc", "ovs"),
    AttachmentType("tap", "linux"),
    AttachmentType("tap", "ovs"),
    AttachmentType("macvtap", "master"),
    AttachmentType("macvtap", "chained"),
    AttachmentType("vhostuser", "ovs"),
)


def attach_guest(
    kind: AttachmentType, node: Node, container: str, stack: ExitStack, extra: Sequence[str] = ()
) -> AttachedGuest:
    """Make a pod, attach it and boot its guest; closing `stack` removes all of it.

    `extra` are arguments of QEMU. Raises AssertionError, GuestError, SwitchError.
    """
    pod = node.pod(container)
    stack.callback(node.lab.drop, pod)
    network = make_network(kind, node, container, pod, stack)
    added = node.call("ADD", network.conf, container, pod)
    added.expect()
    stack.callback(lambda: node.call("DEL", network.conf, container, pod).expect())
    guest, device = boot_guest(kind.mode, node, container, stack, extra)
    return AttachedGuest(guest, device, network.peer, added.ms)


def boot_guest(
    mode: str, node: Node, container: str, stack: ExitStack, extra: Sequence[str] = ()
) -> tuple[Guest, dict[str, Any]]:
    """Boot the guest of an attached container; returns it and its device. Raises GuestError."""
    device = json.loads(node.run(node.ctl("device", container)).stdout)[0]
    guest = Guest.boot(
        prefix=node.ctl("exec", container, "--"),
        extra=extra,
        netns=str(node.path),
        shared_memory=mode == "vhostuser",
    )
    return stack.enter_context(guest), device


def make_network(
    kind: AttachmentType, node: Node, container: str, pod: Path, stack: ExitStack
) -> Network:
    """Make the uplink on the node and return the network; closing `stack` removes the uplink.

    Raises AssertionError, CalledProcessError, SwitchError.
    """
    conf = {"cniVersion": "1.0.0", "name": f"net-{kind.uplink}", "type": "vmlink"}
    conf |= {"mode": kind.mode}
    conf |= {"redirect": kind.redirect} if kind.redirect else {}
    uplink, peer = _UPLINKS[kind.uplink](node, container, pod, stack)
    return Network(conf | uplink, peer)


def _linux(node: Node, container: str, pod: Path, stack: ExitStack) -> tuple[dict[str, Any], Path]:
    """A Linux bridge that vmlink makes, with the node as gateway."""
    ipam = node.ipam("10.88.0.0/24", "fd00:88::/64", routes=ROUTES)
    return {"linux": {"bridge": "demo0", "gateway": True}, "ipam": ipam}, node.path


def _ovs(node: Node, container: str, pod: Path, stack: ExitStack) -> tuple[dict[str, Any], Path]:
    """A bridge of Open vSwitch, whose local port makes the node the gateway."""
    assert node.switch
    if "ovs0" not in node.switch.vsctl("list-br").split():
        node.switch.add_bridge("ovs0")
        for command in ("address add 10.89.0.1/24 dev ovs0", "link set ovs0 up"):
            node.run(["ip", *command.split()])
    ipam = node.ipam("10.89.0.0/24", routes=ROUTES[:1])
    return {"ovs": {"bridge": "ovs0"}, "ipam": ipam}, node.path


def _chained(
    node: Node, container: str, pod: Path, stack: ExitStack
) -> tuple[dict[str, Any], Path]:
    """The veth of Debian's plugin ptp, which uses no bridge."""
    ipam = node.ipam("10.90.0.0/24", routes=ROUTES[:1])
    ptp = {"cniVersion": "1.0.0", "name": "net-chained", "type": "ptp", "ipam": ipam}
    result = node.call("ADD", ptp, container, pod, plugin=PLUGINS / "ptp").expect()
    stack.callback(node.call, "DEL", ptp, container, pod, plugin=PLUGINS / "ptp")
    return {"prevResult": result}, node.path


def _master(node: Node, container: str, pod: Path, stack: ExitStack) -> tuple[dict[str, Any], Path]:
    """One end of a veth as the node's NIC; the other end is the gateway in its own namespace."""
    outside = node.pod(f"outside-{container}")
    stack.callback(node.lab.drop, outside)
    node.run(f"ip link add nic0 type veth peer name gateway netns {outside}".split())
    stack.callback(node.run, ["ip", "link", "del", "nic0"])
    node.run(["ip", "link", "set", "nic0", "up"])
    for command in ("address add 10.91.0.1/24 dev gateway", "link set gateway up"):
        node.run(["ip", *command.split()], outside)
    return {"master": "nic0", "ipam": node.ipam("10.91.0.0/24", routes=ROUTES[:1])}, outside


_UPLINKS: dict[str, Callable[[Node, str, Path, ExitStack], tuple[dict[str, Any], Path]]] = {
    "linux": _linux,
    "ovs": _ovs,
    "chained": _chained,
    "master": _master,
}
