"""What Kata Containers reads and looks for.

Its runtime in Rust reads a file about devices in the host's namespace; the one in Go looks for a
socket at a path that an address of the pod's interface names. Sources: kata-containers,
src/runtime-rs/crates/resource/src/network/dan.rs; src/runtime/virtcontainers/vhostuser_endpoint.go.
"""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, ClassVar

from cni.attach.context import Context, PromisedAddresses
from cni.attach.facts import Fact, Facts
from cni.attach.plan import Kinds, Step
from cni.errors import BadConfig, CheckFailed, IOFailure
from cni.kernel import rtnl_encode
from cni.kernel.netlink import Netlink
from cni.modes.steps.links import IN_POD, Nic, expect_link, need_index, need_link
from cni.modes.steps.vhost_socket import VhostSocket, vmm_socket
from cni.vmm import dan
from cni.vmm.device import Device, promised
from cni.vmm.formats import kata

# Kinds of links that its scan plugs in; "" is a NIC.
_PLUGGED = ("", "veth", "vlan", "macvlan", "macvtap", "ipvlan")
_SOCKETS = "/tmp/vhostuser_{}/vhu.sock"  # hostSocketSearchPath


@dataclass(frozen=True)
class GatewayMacs(Fact):
    """Pairs of a gateway's address and its MAC."""

    entries: tuple[tuple[str, str], ...]


def gateway_macs(facts: Facts) -> tuple[tuple[str, str], ...]:
    """Return the pairs of GatewayMacs, () where no step has provided them."""
    known = facts.get(GatewayMacs)
    return known.entries if known else ()


@dataclass(frozen=True)
class DanFile(Fact):
    """The sandbox's DAN file, and the NIC's entry in it."""

    path: str
    entry: dict[str, Any]


@dataclass(frozen=True)
class KataSocket(Fact):
    """The path at which Kata finds the switch's socket."""

    path: str


@dataclass(frozen=True)
class GatewayNeighbour(Step):
    """Permanent neighbour entries for the gateway, whose MAC is that of `link`.

    The first packet needs no ARP then. `ifname` is the interface that gets them, "" where the pod
    has none.
    """

    needs: ClassVar[Kinds] = (PromisedAddresses,)
    provides: ClassVar[Kinds] = (GatewayMacs,)
    link: str
    ifname: str

    def do(self, cx: Context) -> None:
        mac = need_link(cx.host_netlink, self.link).mac
        entries = tuple((ip.gateway, mac) for ip in cx.addresses().ips if ip.gateway)
        cx.facts.put(GatewayMacs(entries))
        if self.ifname:
            index = need_index(cx.pod_netlink, self.ifname)
            cx.pod_netlink.batch(*(rtnl_encode.add_neighbour(index, *entry) for entry in entries))

    def check(self, cx: Context) -> None:
        if not self.ifname:
            return
        link = expect_link(cx.pod_netlink, self.ifname, IN_POD)
        known = {(n.ip, n.mac, n.state) for n in cx.pod_netlink.neighbours(link.index)}
        for ip, mac in cx.facts[GatewayMacs].entries:
            if (ip, mac, rtnl_encode.NUD_PERMANENT) not in known:
                raise CheckFailed(f"{self.ifname}: expected {mac} as the permanent MAC of {ip}")


@dataclass(frozen=True)
class DanEntry(Step):
    """The NIC in the sandbox's DAN file. `tap` is a tap's name, "" for vhost-user."""

    needs: ClassVar[Kinds] = (Nic,)
    provides: ClassVar[Kinds] = (DanFile,)
    tap: str
    queues: int

    def required(self) -> Kinds:
        return self.needs if self.tap else (Nic, VhostSocket)

    def do(self, cx: Context) -> None:
        path, entry = dan.path_of(cx.node.dan_dir, cx.key.container_id), self._entry(cx)
        cx.facts.put(DanFile(str(path), entry))
        dan.put(path, entry)

    def _entry(self, cx: Context) -> dict[str, Any]:
        nic, result, neighbours = cx.facts[Nic], cx.addresses(), gateway_macs(cx.facts)
        device = Device(
            id=cx.key.tap_link,
            kind="tap" if self.tap else "vhostuser",
            mac=nic.mac,
            mtu=nic.mtu,
            queues=self.queues,
            tap=self.tap,
            path="" if self.tap else cx.facts[VhostSocket].path,
        )
        return kata.entry(promised(device, cx.key.ifname, result, result.ips, neighbours))

    def undo(self, cx: Context) -> None:
        known = cx.facts.get(DanFile)
        path = known.path if known else dan.path_of(cx.node.dan_dir, cx.key.container_id)
        dan.drop(Path(path), self.tap or vmm_socket(cx))

    def check(self, cx: Context) -> None:
        known = cx.facts[DanFile]
        if dan.find(Path(known.path), dan.source(known.entry)) != known.entry:
            raise CheckFailed(
                f"{known.path}: expected the entry of {cx.key.ifname} as ADD wrote it"
            )


@dataclass(frozen=True)
class OneWayIntoKata(Step):
    """All NICs of the sandbox are in the DAN file (`by_file`), or none is.

    Kata does not look at the namespace of a sandbox that has the file. Of two ADDs at the same time
    at least one finds the other: each has first made what the other looks for.
    """

    by_file: bool

    def do(self, cx: Context) -> None:
        if unseen := self._unseen(cx):
            raise BadConfig(f"mode: {unseen}")

    def _unseen(self, cx: Context) -> str:
        """Say which NIC Kata would not see; "" for none."""
        path = dan.path_of(cx.node.dan_dir, cx.key.container_id)
        name = cx.key.ifname if path.exists() else ""
        if self.by_file:
            name = _scanned(cx.pod_netlink)
        return name and (
            f"the guest would not get {name}, since Kata does not look at the pod's namespace when "
            f"there is {path}; use modes tap and vhostuser for all networks of the pod, or for none"
        )

    def check(self, cx: Context) -> None:
        if unseen := self._unseen(cx):
            raise CheckFailed(unseen)


def _scanned(netlink: Netlink) -> str:
    """Return the name of a link that Kata would plug in if it looked; "" for none."""
    links = (link for link in netlink.links() if link.kind in _PLUGGED and link.name != "lo")
    return next((link.name for link in links if netlink.addresses(link.index)), "")


def dan_steps(tap: str, queues: int) -> tuple[Step, ...]:
    """Return the steps for a NIC in the DAN file; `tap` "" is one of vhost-user."""
    return (DanEntry(tap, queues), OneWayIntoKata(True))


@dataclass(frozen=True)
class KataSocketLink(Step):
    """A link to the switch's socket where Kata looks for it, by the pod's first address."""

    needs: ClassVar[Kinds] = (VhostSocket, PromisedAddresses)
    provides: ClassVar[Kinds] = (KataSocket,)
    port: str

    def do(self, cx: Context) -> None:
        ips = cx.addresses().ips
        if not ips:
            raise BadConfig("ipam: returned no address, by which Kata finds the socket; add one")
        path = _SOCKETS.format(ipaddress.ip_interface(ips[0].address).ip)
        made = _SOCKETS.format(self.port)
        self.undo(cx)  # of an attachment whose record was lost
        try:
            # All users may write to /tmp, and QEMU will connect to what it finds: a directory that
            # is renamed takes the place of an empty one, and follows no link.
            os.mkdir(os.path.dirname(made), 0o755)
            os.symlink(cx.facts[VhostSocket].path, made)
            os.rename(os.path.dirname(made), os.path.dirname(path))
        except OSError as e:
            raise IOFailure(
                f"{os.path.dirname(path)}: cannot be made: {e.strerror}; remove what is there"
            ) from e
        cx.facts.put(KataSocket(path))

    def undo(self, cx: Context) -> None:
        """Remove what leads to our port: the address may be unknown, or another pod's by now."""
        for path in glob(_SOCKETS.format("*")):
            with suppress(OSError):
                if os.readlink(path).endswith("/" + self.port):
                    os.unlink(path)
                    os.rmdir(os.path.dirname(path))
        with suppress(OSError):
            os.rmdir(os.path.dirname(_SOCKETS.format(self.port)))

    def check(self, cx: Context) -> None:
        path, expected = cx.facts[KataSocket].path, cx.facts[VhostSocket].path
        try:
            target = os.readlink(path)
        except OSError:
            target = "nothing"
        if target != expected:
            raise CheckFailed(f"{path}: expected a link to {expected}, found {target}")
