"""What takes part in `bench datapath`, and the two hosts between which each is measured."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from os import kill
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any, Protocol

from bench.testbed import switch
from bench.testbed.attachments import AttachmentType, Network, attach_guest, make_network
from bench.testbed.cpu_time import NAMED_VCPUS
from bench.testbed.guest import Guest
from bench.testbed.node import Node
from bench.testbed.traffic import Host, NamespaceHost, start_servers
from cni.kernel import redirect
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from cni.vmm.descriptors import have_vhost


@dataclass(frozen=True)
class Endpoints:
    """The two hosts of a datapath: `far` has the servers, `near` calls them at `far_ip`.

    `guests` are those that must run during a measurement. With `sender_pays` the kernel takes a
    packet from `near` all the way, up to a tap or a socket, in the sender's context: the sender's
    CPU time is that of the datapath. A switch in user space, or a guest that sends, rules that out.
    """

    near: Host
    far: Host
    near_ip: str
    far_ip: str
    guests: tuple[Guest, ...] = ()
    sender_pays: bool = False

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Let the guests run during this block; even an idle guest takes CPU from the others."""
        try:
            for guest in self.guests:
                kill(guest.pid, SIGCONT)
            yield
        finally:
            for guest in self.guests:
                kill(guest.pid, SIGSTOP)

    def to_guest(self, other: Endpoints) -> Endpoints:
        """The datapath from this one's far host to the other's."""
        guests = (*self.guests, *other.guests)
        return Endpoints(self.far, other.far, self.far_ip, other.far_ip, guests)


class Datapath(Protocol):
    """A datapath to measure; subclasses set `name` and, where it differs, the rest.

    `role` is one of bench.results.ROLES, `note` what a reader must know, `has_guest` whether it
    boots a guest.
    """

    name: str
    role: str = "ceiling"
    note: str = ""
    has_guest: bool = True

    def missing(self) -> str:
        """Why this machine cannot run it; empty when it can."""
        return ""

    def open(self, node: Node, container: str, stack: ExitStack) -> Endpoints:
        """Make it on the node; closing `stack` removes it, also after an error.

        Raises AssertionError, GuestError, SwitchError, OSError, SubprocessError.
        """
        ...


class VmlinkGuest(Datapath):
    """A guest behind an attachment of vmlink."""

    role = "vmlink"

    def __init__(self, kind: AttachmentType) -> None:
        self._kind = kind
        self.name = kind.name

    def missing(self) -> str:
        return self._kind.missing()

    def open(self, node: Node, container: str, stack: ExitStack) -> Endpoints:
        made = attach_guest(self._kind, node, container, stack, NAMED_VCPUS)
        gateway = next(r["gw"] for r in made.device["routes"] if ":" not in r["dst"])
        near, addresses = NamespaceHost(made.peer), made.device["addresses"]
        ends = _guest_endpoints(near, made.guest, addresses, gateway, stack)
        return replace(ends, sender_pays=not self._kind.switch)


class BridgeAndTap(Datapath):
    """What runtimes do without vmlink: a bridge in the pod joins its veth and the guest's tap."""

    role = "baseline"
    note = "veth, Linux bridge in the pod's namespace, tap"

    def __init__(self, uplink: str) -> None:
        self._uplink = uplink
        self.name = f"bridge-tap-{uplink}"

    def missing(self) -> str:
        return switch.missing() if self._uplink == "ovs" else ""

    def open(self, node: Node, container: str, stack: ExitStack) -> Endpoints:
        pod, network, result = _veth_pod(self._uplink, node, container, stack)
        _bridge_tap(node, pod)
        vhost = ",vhost=on" if have_vhost() else ""
        netdev = f"tap,id=n0,ifname=tap0,script=no,downscript=no{vhost}"
        device = f"virtio-net-pci,netdev=n0,mac={result['interfaces'][0]['mac']}"
        extra = ["-netdev", netdev, "-device", device, *NAMED_VCPUS]
        guest = stack.enter_context(Guest.boot(netns=str(pod), extra=extra))
        addresses = [ip["address"] for ip in result["ips"]]
        near, gateway = NamespaceHost(network.peer), result["ips"][0]["gateway"]
        ends = _guest_endpoints(near, guest, addresses, gateway, stack)
        return replace(ends, sender_pays=self._uplink != "ovs")


class GuestLoopback(Datapath):
    """A guest that sends to itself: what its emulation allows at most."""

    name = "guest-loopback"
    note = "inside one guest; it has no direction"

    def open(self, node: Node, container: str, stack: ExitStack) -> Endpoints:
        guest = stack.enter_context(Guest.boot(extra=NAMED_VCPUS))
        start_servers(guest)
        return _paused(Endpoints(guest, guest, "127.0.0.1", "127.0.0.1", (guest,)), stack)


class VethPod(Datapath):
    """A plain container: what the kernel does without a guest."""

    name = "veth-linux"
    note = "namespace to namespace through the same bridge, without a guest"
    has_guest = False

    def open(self, node: Node, container: str, stack: ExitStack) -> Endpoints:
        pod, network, result = _veth_pod("linux", node, container, stack)
        ip = result["ips"][0]
        far = _serving_host(pod, stack)
        address = ip["address"].partition("/")[0]
        return Endpoints(NamespaceHost(network.peer), far, ip["gateway"], address, sender_pays=True)


class TwoVeths(Datapath):
    """Two veths joined by a redirect of mode tc, or by a bridge: only that makes the difference."""

    has_guest = False

    def __init__(self, engine: str = "") -> None:
        self._engine = engine
        kind = AttachmentType("tc", "linux", engine)
        self.name = kind.name if engine else "bridge-tap-linux"
        self.role = "vmlink" if engine else "baseline"
        self.note = f"two veths and {engine or 'a bridge'} between them, without a guest"

    def missing(self) -> str:
        return redirect.supported()[self._engine] if self._engine else ""

    def open(self, node: Node, container: str, stack: ExitStack) -> Endpoints:
        paths = [node.pod(f"{container}-{n}") for n in range(3)]
        for path in paths:
            stack.callback(node.lab.drop, path)
        near, middle, far = paths
        for n, end in enumerate((near, far)):
            peer = f"peer name m{n} netns {middle}"
            node.run(f"ip link add e0 type veth {peer}".split(), end)
            for command in (f"address add 10.0.0.{n + 1}/24 dev e0", "link set e0 up"):
                node.run(["ip", *command.split()], end)
            node.run(f"ip link set m{n} up".split(), middle)
        self._join(node, middle)
        server = _serving_host(far, stack)
        return Endpoints(NamespaceHost(near), server, "10.0.0.1", "10.0.0.2", sender_pays=True)

    def _join(self, node: Node, middle: Path) -> None:
        if not self._engine:
            node.run("ip link add between0 up type bridge".split(), middle)
            for n in range(2):
                node.run(f"ip link set m{n} master between0".split(), middle)
            return
        with (
            Namespace.open(str(middle)) as namespace,
            namespace.entered(),
            Netlink() as netlink,
        ):
            one, other = (socket.if_nametoindex(name) for name in ("m0", "m1"))
            redirect.attach(self._engine, netlink, one, other)


def _veth_pod(
    uplink: str, node: Node, container: str, stack: ExitStack
) -> tuple[Path, Network, dict[str, Any]]:
    """A plain container's veth on an uplink: its namespace, network and CNI result."""
    pod = node.pod(container)
    stack.callback(node.lab.drop, pod)
    network = make_network(AttachmentType("veth", uplink), node, container, pod, stack)
    result = node.call("ADD", network.conf, container, pod).expect()
    stack.callback(lambda: node.call("DEL", network.conf, container, pod).expect())
    return pod, network, result


def _bridge_tap(node: Node, pod: Path) -> None:
    """Join a pod's eth0 and a new tap0 by a bridge.

    The guest takes over eth0's address and MAC: a bridge keeps frames for its own ports' MACs.
    """
    for command in (
        "address flush dev eth0",
        "link set eth0 address 02:00:00:00:00:01",
        "link add between0 type bridge",
        "tuntap add tap0 mode tap vnet_hdr",
        "link set eth0 master between0",
        "link set tap0 master between0 up",
        "link set between0 addrgenmode none up",
    ):
        node.run(["ip", *command.split()], pod)


def _serving_host(path: Path, stack: ExitStack) -> NamespaceHost:
    host = NamespaceHost(path)
    for group in start_servers(host):
        stack.callback(host.kill, group)
    return host


def _guest_endpoints(
    near: Host, guest: Guest, addresses: Sequence[str], gateway: str, stack: ExitStack
) -> Endpoints:
    """Give a guest its IPv4 address and start its servers."""
    address = next(a for a in addresses if ipaddress.ip_interface(a).version == 4)
    guest.configure(guest.nics()[0].name, [address], [gateway])
    start_servers(guest)
    ip = address.partition("/")[0]
    return _paused(Endpoints(near, guest, gateway, ip, (guest,)), stack)


def _paused(ends: Endpoints, stack: ExitStack) -> Endpoints:
    """Stop the guests until they are measured."""
    with ends.resumed():
        pass
    for guest in ends.guests:
        stack.callback(kill, guest.pid, SIGCONT)  # a stopped process does not see SIGTERM
    return ends
