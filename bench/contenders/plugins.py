"""What is measured side by side: CNI plugins and ovs-vsctl, executed as others execute them."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.contenders.peers import Peer
from bench.report.results import Series
from bench.testbed.daemons import SECONDS
from bench.testbed.node import CLIENT, PLUGINS, Node, execute
from bench.testbed.switch import Switch
from bench.testbed.ways import Way, network
from cni.kernel import rtnl_encode
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from cni.ovs.port_ops import VHOSTUSER

VERBS = ("ADD", "CHECK", "DEL")
_numbers = itertools.count(1)


class Attachment(Protocol):
    """One pod. What is around the calls is made before and given back by `release`."""

    def call(self, verb: str) -> float:
        """The whole process in ms. Raises AssertionError when it failed."""
        ...

    def release(self) -> None: ...


class Contender(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def role(self) -> str: ...

    @property
    def verbs(self) -> Sequence[str]: ...

    def attachment(self) -> Attachment:
        """A pod that is not attached yet."""
        ...


def series(
    contender: Contender, metric: str, unit: str, at: Mapping[str, int | str], note: str = ""
) -> Series:
    return Series("attach", metric, unit, contender.name, contender.role, at, note=note)


@dataclass(frozen=True)
class Plugin:
    """A CNI plugin and its network; `behind` is the plugin before it in a chain."""

    name: str
    role: str
    node: Node
    path: Path
    conf: Mapping[str, Any]
    behind: Plugin | None = None
    verbs: Sequence[str] = VERBS

    def attachment(self) -> Attached:
        return Attached(self, f"{self.name}-{next(_numbers)}")

    def call(
        self, verb: str, conf: Mapping[str, Any], container: str, pod: Path
    ) -> tuple[Any, float]:
        """The result, if there is one, and milliseconds."""
        where = f"{self.path.parent}:{PLUGINS}"
        answer = self.node.call(verb, conf, container, pod, plugin=self.path, CNI_PATH=where)
        return answer.expect(), answer.ms


class Attached:
    """A pod of a Plugin, in a namespace of its own."""

    def __init__(self, plugin: Plugin, container: str) -> None:
        self._plugin, self.container = plugin, container
        self._conf = dict(plugin.conf)
        self.pod = plugin.node.pod(container)
        if behind := plugin.behind:
            self._conf["prevResult"] = behind.call("ADD", behind.conf, container, self.pod)[0]

    def call(self, verb: str) -> float:
        result, ms = self._plugin.call(verb, self._conf, self.container, self.pod)
        if verb == "ADD":
            assert result, f"{self._plugin.name}: ADD printed no result"
            self._conf["prevResult"] = result
        return ms

    def release(self) -> None:
        if behind := self._plugin.behind:
            behind.call("DEL", behind.conf, self.container, self.pod)
        self._plugin.node.lab.drop(self.pod)


@dataclass(frozen=True)
class Vsctl:
    """ovs-vsctl add-port and del-port; waits for ovs-vswitchd, as others use it.

    The port is a veth that is made beforehand, or with `vhostuser` one for a guest's socket.
    """

    node: Node
    bridge: str
    name: str = "ovs-vsctl"
    role: str = "baseline"
    vhostuser: bool = False
    verbs: Sequence[str] = ("ADD", "DEL")

    def attachment(self) -> VsctlPort:
        link = f"vsctl{next(_numbers)}"
        return VsctlPort(self, link) if self.vhostuser else VsctlVeth(self, link)


class VsctlPort:
    def __init__(self, contender: Vsctl, link: str) -> None:
        self._bridge, self._link, self._node = contender.bridge, link, contender.node
        self._settings: tuple[str, ...] = ()
        if contender.vhostuser:
            path = f"{self._node.lab.dir}/{link}.sock"
            options = (f"type={VHOSTUSER}", f"options:vhost-server-path={path}")
            self._settings = ("--", "set", "Interface", link, *options)

    def call(self, verb: str) -> float:
        assert self._node.switch
        if verb == "ADD":
            return vsctl(self._node.switch, "add-port", self._bridge, self._link, *self._settings)
        return vsctl(self._node.switch, "del-port", self._bridge, self._link)

    def release(self) -> None:
        """A port of a guest's socket is only rows."""


class VsctlVeth(VsctlPort):
    def __init__(self, contender: Vsctl, link: str) -> None:
        super().__init__(contender, link)
        node = contender.node
        self._pod = node.pod(link)
        with Namespace.open(str(self._pod)) as pod:
            with node.namespace.entered(), Netlink() as netlink:
                veth = rtnl_encode.new_veth(self._link, "eth0", peer_ns_fd=pod.fd, up=True)
                netlink.batch(veth)
            with pod.entered(), Netlink() as netlink:
                netlink.batch(rtnl_encode.set_link(netlink.index("eth0") or 0, up=True))

    def release(self) -> None:
        with self._node.namespace.entered(), Netlink() as netlink:
            netlink.batch(rtnl_encode.del_link(netlink.index(self._link)))
        self._node.lab.drop(self._pod)


def vsctl(switch: Switch, *arguments: str) -> float:
    """The whole process in ms."""
    program = shutil.which("ovs-vsctl") or "ovs-vsctl"
    argv = [program, f"--db={switch.db}", f"--timeout={SECONDS}", *arguments]
    code, said, ms = execute(argv, {"PATH": os.environ["PATH"]}, b"")
    assert code == 0, f"{' '.join(argv)}: exit code {code}: {said.decode(errors='replace')}"
    return ms


@dataclass(frozen=True)
class Idle:
    """A process that does nothing: what any plugin pays for being executed."""

    node: Node
    name: str = "/bin/true"
    role: str = "floor"
    verbs: Sequence[str] = ("ADD",)

    def attachment(self) -> Idle:
        return self

    def call(self, verb: str) -> float:
        return self.node.execute(Path("/bin/true"), {}, b"").ms

    def release(self) -> None:
        """Nothing was made."""


def vmlink(way: Way, node: Node, subnet: int, stack: ExitStack, variant: str = "") -> Plugin:
    """Vmlink on the way's uplink, with addresses of 10.`subnet`.0.0/16. A `variant` has a name and
    a network of its own.
    """
    called = "-".join(filter(None, (way.name, variant)))
    name = f"bench-{called}"
    if way.uplink == "chained":
        ptp = debian("ptp", node, subnet)
        first = Plugin(name, "peer", node, ptp.path, {**ptp.conf, "name": name})
        conf = {"cniVersion": "1.0.0", "type": "vmlink", "mode": way.mode}
        return Plugin(called, "vmlink", node, CLIENT, conf | {"name": name}, first)
    made = network(way, node, way.name, node.path, stack)
    conf = made.conf | {"name": name, "ipam": _addresses(node, subnet)}
    return Plugin(called, "vmlink", node, CLIENT, conf)


def debian(kind: str, node: Node, subnet: int) -> Plugin:
    """A plugin of Debian's containernetworking-plugins."""
    conf: dict[str, Any] = {"ipam": _addresses(node, subnet)}
    if kind != "bridge":
        return _plugin(kind, "peer", node, PLUGINS / kind, conf)
    conf |= {"bridge": "bench0", "isGateway": True}
    return _plugin(kind, "baseline", node, PLUGINS / kind, conf)


def peer(given: Peer, node: Node, subnet: int) -> Plugin:
    conf = given.conf or {"ipam": _addresses(node, subnet)}
    return _plugin(given.type, "peer", node, given.path, conf)


def _addresses(node: Node, subnet: int) -> dict[str, Any]:
    return node.ipam(f"10.{subnet}.0.0/16", routes=["0.0.0.0/0"])


def _plugin(kind: str, role: str, node: Node, path: Path, extra: Mapping[str, Any]) -> Plugin:
    conf = {"cniVersion": "1.0.0", "name": f"bench-{kind}", "type": kind, **extra}
    return Plugin(kind, role, node, path, conf)
