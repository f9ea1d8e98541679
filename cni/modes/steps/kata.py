"""The steps that Kata Containers needs: what it reads, and what it finds.

Its runtime in Rust reads a file about devices in the host's namespace; the one in Go looks for a
socket at a place that an address of the pod's interface names. Sources: kata-containers,
src/runtime-rs/crates/resource/src/network/dan.rs; src/runtime/virtcontainers/vhostuser_endpoint.go.
"""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

from cni.attach.context import Context, Node
from cni.attach.plan import Step
from cni.config.network import NetConf
from cni.config.uplinks import LinuxUplink
from cni.errors import BadConfig, CheckFailed, IOFailure, NotReady
from cni.kernel import rtnl_encode
from cni.modes.steps.links import expect_link, need_index, need_link, socket_path
from cni.spec.types import AttachmentKey
from cni.vmm import dan
from cni.vmm.device import Device, promised
from cni.vmm.formats import kata

_SOCKETS = "/tmp/vhostuser_{}/vhu.sock"  # hostSocketSearchPath


def gateway_steps(key: AttachmentKey, conf: NetConf, in_pod: bool) -> tuple[Step, ...]:
    """For a runtime that copies neighbour entries, when the gateway is a bridge of ours."""
    uplink = conf.uplink
    if conf.runtime == "any" or not isinstance(uplink, LinuxUplink) or not uplink.gateway:
        return ()
    link = f"{uplink.bridge}.{uplink.vlan}" if uplink.vlan else uplink.bridge
    return (KnownGateway(link, key.ifname if in_pod else ""),)


def ready(node: Node) -> None:
    """STATUS of a network whose switch listens. Raises NotReady."""
    try:
        node.ovs.vhost_directory()
    except BadConfig as e:
        raise NotReady(e.msg) from e


@dataclass(frozen=True)
class KnownGateway(Step):
    """The MAC of the gateway, which `link` has, is known before the first packet.

    The interface `ifname` gets permanent neighbour entries; "" where the pod has none.
    """

    link: str
    ifname: str

    def do(self, cx: Context) -> None:
        mac = need_link(cx.host_netlink, self.link).mac
        found = [(ip.gateway, mac) for ip in cx.ipam().ips if ip.gateway]
        cx.facts["neighbours"] = found
        if self.ifname:
            index = need_index(cx.pod_netlink, self.ifname)
            cx.pod_netlink.batch(*(rtnl_encode.add_neighbour(index, ip, mac) for ip, mac in found))

    def check(self, cx: Context) -> None:
        if not self.ifname:
            return
        link = expect_link(cx.pod_netlink, self.ifname, "in the pod's namespace")
        known = {(n.ip, n.mac, n.state) for n in cx.pod_netlink.neighbours(link.index)}
        for ip, mac in cx.facts["neighbours"]:
            if (ip, mac, rtnl_encode.NUD_PERMANENT) not in known:
                raise CheckFailed(f"{self.ifname}: expected {mac} as the permanent MAC of {ip}")


@dataclass(frozen=True)
class DanEntry(Step):
    """This NIC in the sandbox's DAN file. `tap` is a tap's name; "" for vhost-user."""

    tap: str
    queues: int

    def do(self, cx: Context) -> None:
        facts = cx.facts
        nic = Device(
            id=cx.key.tap_link,
            kind="tap" if self.tap else "vhostuser",
            mac=facts["mac"],
            mtu=facts["mtu"],
            queues=self.queues,
            tap=self.tap,
            path=facts.get("socket", ""),
        )
        result = cx.ipam()
        known = facts.get("neighbours", ())
        entry = kata.entry(promised(nic, cx.key.ifname, result, result.ips, known))
        path = dan.path_of(cx.node.dan_dir, cx.key.container_id)
        facts.update(dan_file=str(path), dan_entry=entry)
        dan.put(path, cx.netns_path, entry)

    def undo(self, cx: Context) -> None:
        path = dan.path_of(cx.node.dan_dir, cx.key.container_id)
        dan.drop(Path(cx.facts.get("dan_file", path)), self.tap or socket_path(cx))

    def check(self, cx: Context) -> None:
        path, mine = Path(cx.facts["dan_file"]), cx.facts["dan_entry"]
        if dan.find(path, dan.source(mine)) != mine:
            raise CheckFailed(f"{path}: expected the entry of {cx.key.ifname} as ADD wrote it")


@dataclass(frozen=True)
class SwitchSocket(Step):
    """The socket on which ovs-vswitchd listens: it has the port's name, in a directory of its own.

    Source: Open vSwitch manual, "DPDK vHost User Ports"; ovs-vswitchd.conf.db(5), vhost-sock-dir.
    """

    mac: str = field(compare=False)
    port: str

    def do(self, cx: Context) -> None:
        cx.facts.update(mac=self.mac, socket=f"{cx.node.ovs.vhost_directory()}/{self.port}")

    def bind(self, cx: Context) -> None:
        cx.facts["mac"] = self.mac


@dataclass(frozen=True)
class FoundSocket(Step):
    """A link to the switch's socket where Kata looks for it, by the pod's first address."""

    port: str

    def do(self, cx: Context) -> None:
        ips = cx.ipam().ips
        if not ips:
            raise BadConfig("ipam: returned no address, by which Kata finds the socket")
        path = _SOCKETS.format(ipaddress.ip_interface(ips[0].address).ip)
        made = _SOCKETS.format(self.port)
        self.undo(cx)  # of an attachment whose record was lost
        try:
            # Everybody may write to /tmp, and QEMU will connect to what it finds: a directory that
            # is renamed takes the place of an empty one, and follows no link.
            os.mkdir(os.path.dirname(made), 0o755)
            os.symlink(cx.facts["socket"], made)
            os.rename(os.path.dirname(made), os.path.dirname(path))
        except OSError as e:
            raise IOFailure(
                f"{os.path.dirname(path)}: cannot be made: {e.strerror}; remove what is there"
            ) from e
        cx.facts["kata_socket"] = path

    def undo(self, cx: Context) -> None:
        """The address may be another's by now, or not known: what leads to our port is ours."""
        for path in glob(_SOCKETS.format("*")):
            with suppress(OSError):
                if os.readlink(path).endswith("/" + self.port):
                    os.unlink(path)
                    os.rmdir(os.path.dirname(path))
        with suppress(OSError):
            os.rmdir(os.path.dirname(_SOCKETS.format(self.port)))

    def check(self, cx: Context) -> None:
        path, expected = cx.facts["kata_socket"], cx.facts["socket"]
        try:
            found = os.readlink(path)
        except OSError:
            found = "nothing"
        if found != expected:
            raise CheckFailed(f"{path}: expected a link to {expected}, found {found}")
