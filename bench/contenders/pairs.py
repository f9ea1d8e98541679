"""Who takes part in `bench datapath`, and the two hosts between which each is measured."""

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

from bench.suites.cputime import NAMED_THREADS
from bench.testbed import switch
from bench.testbed.guest import Guest
from bench.testbed.node import Node
from bench.testbed.traffic import Host, Space, listen
from bench.testbed.ways import Network, Way, attach, network
from cni.kernel import redirect
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from cni.vmm.descriptors import have_vhost


@dataclass(frozen=True)
class Pair:
    """`far` listens at `far_ip`; of the two, `guests` are those that must run to be measured.

    `by_kernel` is whether a packet from `near` is taken all of its way, up to a tap or a socket, in
    the context of who sends: not by a switch in user space, nor by a guest.
    """

    near: Host
    far: Host
    near_ip: str
    far_ip: str
    guests: tuple[Guest, ...] = ()
    by_kernel: bool = False

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Its guests run meanwhile: even idle, each takes CPU from the one that is measured."""
        try:
            for guest in self.guests:
                kill(guest.pid, SIGCONT)
            yield
        finally:
            for guest in self.guests:
                kill(guest.pid, SIGSTOP)

    def beside(self, other: Pair) -> Pair:
        """From this one's far host to the other's."""
        return Pair(self.far, other.far, self.far_ip, other.far_ip, (*self.guests, *other.guests))


class Contender(Protocol):
    """`role` is what bench.results.ROLES says, `note` what a reader must know; `boots` whether
    it has a guest.
    """

    @property
    def name(self) -> str: ...

    @property
    def role(self) -> str: ...

    @property
    def note(self) -> str: ...

    @property
    def boots(self) -> bool: ...

    def missing(self) -> str:
        """Why it cannot take part here; empty when it can."""
        ...

    def open(self, node: Node, container: str, stack: ExitStack) -> Pair:
        """Make it on the node; `stack` takes it back, and must when this fails too."""
        ...


@dataclass(frozen=True)
class Vmlink:
    way: Way
    role: str = "vmlink"
    note: str = ""
    boots: bool = True

    @property
    def name(self) -> str:
        return self.way.name

    def missing(self) -> str:
        return self.way.missing()

    def open(self, node: Node, container: str, stack: ExitStack) -> Pair:
        made = attach(self.way, node, container, stack, NAMED_THREADS)
        gateway = next(gw for _, gw in made.device["routes"] if gw and ":" not in gw)
        pair = _pair(Space(made.peer), made.guest, made.device["addresses"], gateway, stack)
        return replace(pair, by_kernel=not self.way.switch)


@dataclass(frozen=True)
class Bridged:
    """What runtimes do that have a veth and want a tap: a Linux bridge between the two."""

    uplink: str
    role: str = "baseline"
    note: str = "veth, Linux bridge in the pod's namespace, tap"
    boots: bool = True

    @property
    def name(self) -> str:
        return f"bridge-tap-{self.uplink}"

    def missing(self) -> str:
        return switch.missing() if self.uplink == "ovs" else ""

    def open(self, node: Node, container: str, stack: ExitStack) -> Pair:
        pod, net, result = _plain(self.uplink, node, container, stack)
        mac = result["interfaces"][0]["mac"]
        for command in (
            # The address is the guest's, and so is the MAC: a bridge keeps what is for its ports.
            "address flush dev eth0",
            "link set eth0 address 02:00:00:00:00:01",
            "link add between0 type bridge",
            "tuntap add tap0 mode tap vnet_hdr",
            "link set eth0 master between0",
            "link set tap0 master between0 up",
            "link set between0 addrgenmode none up",
        ):
            node.run(["ip", *command.split()], pod)
        vhost = ",vhost=on" if have_vhost() else ""
        netdev = f"tap,id=n0,ifname=tap0,script=no,downscript=no{vhost}"
        nic = ["-netdev", netdev, "-device", f"virtio-net-pci,netdev=n0,mac={mac}"]
        guest = Guest.boot(netns=str(pod), extra=[*nic, *NAMED_THREADS])
        stack.enter_context(guest)
        addresses = [ip["address"] for ip in result["ips"]]
        pair = _pair(Space(net.peer), guest, addresses, result["ips"][0]["gateway"], stack)
        return replace(pair, by_kernel=self.uplink != "ovs")


@dataclass(frozen=True)
class Loopback:
    name: str = "guest-loopback"
    role: str = "ceiling"
    note: str = "inside one guest; it has no direction"
    boots: bool = True

    def missing(self) -> str:
        return ""

    def open(self, node: Node, container: str, stack: ExitStack) -> Pair:
        guest = stack.enter_context(Guest.boot(extra=NAMED_THREADS))
        listen(guest)
        return _asleep(Pair(guest, guest, "127.0.0.1", "127.0.0.1", (guest,)), stack)


@dataclass(frozen=True)
class Plain:
    name: str = "veth-linux"
    role: str = "ceiling"
    note: str = "namespace to namespace through the same bridge, without a guest"
    boots: bool = False

    def missing(self) -> str:
        return ""

    def open(self, node: Node, container: str, stack: ExitStack) -> Pair:
        pod, net, result = _plain("linux", node, container, stack)
        ip = result["ips"][0]
        far = _listening(pod, stack)
        address = ip["address"].partition("/")[0]
        return Pair(Space(net.peer), far, ip["gateway"], address, by_kernel=True)


@dataclass(frozen=True)
class Wired:
    """Two veths and what forwards between them: an engine of mode tc, or else a bridge.

    Without a guest the engine alone makes the difference.
    """

    engine: str = ""
    boots: bool = False

    @property
    def name(self) -> str:
        return Way("tc", "linux", self.engine).name if self.engine else "bridge-tap-linux"

    @property
    def role(self) -> str:
        return "vmlink" if self.engine else "baseline"

    @property
    def note(self) -> str:
        return f"two veths and {self.engine or 'a bridge'} between them, without a guest"

    def missing(self) -> str:
        return redirect.supported()[self.engine] if self.engine else ""

    def open(self, node: Node, container: str, stack: ExitStack) -> Pair:
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
        self._wire(node, middle)
        listening = _listening(far, stack)
        return Pair(Space(near), listening, "10.0.0.1", "10.0.0.2", by_kernel=True)

    def _wire(self, node: Node, middle: Path) -> None:
        if not self.engine:
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
            redirect.attach(self.engine, netlink, one, other)


def _plain(
    uplink: str, node: Node, container: str, stack: ExitStack
) -> tuple[Path, Network, dict[str, Any]]:
    """A plain container's veth on the same uplink: its namespace, network and CNI result."""
    pod = node.pod(container)
    stack.callback(node.lab.drop, pod)
    net = network(Way("veth", uplink), node, container, pod, stack)
    result = node.call("ADD", net.conf, container, pod).expect()
    stack.callback(lambda: node.call("DEL", net.conf, container, pod).expect())
    return pod, net, result


def _listening(path: Path, stack: ExitStack) -> Space:
    space = Space(path)
    for group in listen(space):
        stack.callback(space.kill, group)
    return space


def _pair(
    near: Host, guest: Guest, addresses: Sequence[str], gateway: str, stack: ExitStack
) -> Pair:
    """A guest with its IPv4 address, and with servers that listen."""
    address = next(a for a in addresses if ipaddress.ip_interface(a).version == 4)
    guest.configure(guest.nics()[0].name, [address], [gateway])
    listen(guest)
    ip = address.partition("/")[0]
    return _asleep(Pair(near, guest, gateway, ip, (guest,)), stack)


def _asleep(pair: Pair, stack: ExitStack) -> Pair:
    with pair.awake():
        pass
    for guest in pair.guests:
        stack.callback(kill, guest.pid, SIGCONT)  # to hear that it shall end
    return pair
