"""Ports added and deleted by ovs-vsctl, as scripts and plugins without a daemon do it."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.testbed.daemons import SECONDS
from bench.testbed.node import Node, execute
from bench.testbed.switch import Switch
from cni.kernel import rtnl_encode
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from cni.ovs.port_ops import VHOSTUSER

_numbers = itertools.count(1)


@dataclass(frozen=True)
class OvsVsctl:
    """ovs-vsctl add-port and del-port, which wait for ovs-vswitchd.

    The port is a veth that is made beforehand, or with `vhostuser` one for a guest's socket.
    """

    node: Node
    bridge: str
    name: str = "ovs-vsctl"
    role: str = "baseline"
    vhostuser: bool = False
    verbs: Sequence[str] = ("ADD", "DEL")

    def attachment(self) -> VhostUserPort:
        link = f"vsctl{next(_numbers)}"
        return VhostUserPort(self, link) if self.vhostuser else VethPort(self, link)


class VhostUserPort:
    """A port for a guest's socket, which is only rows of the database."""

    def __init__(self, contender: OvsVsctl, link: str) -> None:
        assert contender.node.switch
        self._switch, self._bridge, self._link = contender.node.switch, contender.bridge, link
        self._settings: tuple[str, ...] = ()
        if contender.vhostuser:
            path = f"{contender.node.lab.dir}/{link}.sock"
            options = (f"type={VHOSTUSER}", f"options:vhost-server-path={path}")
            self._settings = ("--", "set", "Interface", link, *options)

    def call(self, verb: str) -> float:
        if verb == "ADD":
            return vsctl(self._switch, "add-port", self._bridge, self._link, *self._settings)
        return vsctl(self._switch, "del-port", self._bridge, self._link)

    def release(self) -> None:
        pass


class VethPort(VhostUserPort):
    """A port that is one end of a veth; the other end is in a pod's namespace."""

    def __init__(self, contender: OvsVsctl, link: str) -> None:
        super().__init__(contender, link)
        self._node = contender.node
        self._pod = self._node.pod(link)
        with Namespace.open(str(self._pod)) as pod:
            with self._node.namespace.entered(), Netlink() as netlink:
                veth = rtnl_encode.new_veth(self._link, "eth0", peer_ns_fd=pod.fd, up=True)
                netlink.batch(veth)
            with pod.entered(), Netlink() as netlink:
                netlink.batch(rtnl_encode.set_link(netlink.index("eth0") or 0, up=True))

    def release(self) -> None:
        with self._node.namespace.entered(), Netlink() as netlink:
            netlink.batch(rtnl_encode.del_link(netlink.index(self._link)))
        self._node.lab.drop(self._pod)


def vsctl(switch: Switch, *arguments: str) -> float:
    """Run ovs-vsctl; returns milliseconds. Raises AssertionError when it fails."""
    program = shutil.which("ovs-vsctl") or "ovs-vsctl"
    argv = [program, f"--db={switch.db}", f"--timeout={SECONDS}", *arguments]
    code, output, ms = execute(argv, {"PATH": os.environ["PATH"]}, b"")
    assert code == 0, f"{' '.join(argv)}: exit code {code}: {output.decode(errors='replace')}"
    return ms


def wait_until_idle(node: Node) -> None:
    """Wait until ovs-vswitchd has done all its work.

    It confirms a change only after it has made all that was in the database before.
    """
    assert node.switch
    change = f"external_ids:bench={time.monotonic_ns()}"
    vsctl(node.switch, "set", "Open_vSwitch", ".", change)
