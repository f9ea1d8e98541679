"""CNI plugins, executed as a runtime executes them, and the protocol of all attach contenders."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.contenders.peers import Peer
from bench.results import Series
from bench.testbed.attachments import AttachmentType, make_network
from bench.testbed.node import CLIENT, PLUGINS, Node

VERBS = ("ADD", "CHECK", "DEL")
_numbers = itertools.count(1)


class Attachment(Protocol):
    """One pod. It is made before the first call and removed by `release`."""

    def call(self, verb: str) -> float:
        """Milliseconds that the process took. Raises AssertionError when it failed."""
        ...

    def release(self) -> None:
        """Remove the pod."""
        ...


class Contender(Protocol):
    """Something that attaches pods and takes part in `bench attach`.

    `role` is one of bench.results.ROLES, `verbs` are the calls that it knows.
    """

    @property
    def name(self) -> str:
        """How results and tables call it."""
        ...

    @property
    def role(self) -> str:
        """What it is to vmlink."""
        ...

    @property
    def verbs(self) -> Sequence[str]:
        """The calls to make, in order."""
        ...

    def attachment(self) -> Attachment:
        """A pod that is not attached yet."""
        ...


def series(
    contender: Contender, metric: str, unit: str, at: Mapping[str, int | str], note: str = ""
) -> Series:
    """A series of suite attach, without samples yet."""
    return Series("attach", metric, unit, contender.name, contender.role, at, note=note)


@dataclass(frozen=True)
class Plugin:
    """A CNI plugin and its network; `previous` is the plugin before it in a chain."""

    name: str
    role: str
    node: Node
    path: Path
    conf: Mapping[str, Any]
    previous: Plugin | None = None
    verbs: Sequence[str] = VERBS

    def attachment(self) -> PluginAttachment:
        return PluginAttachment(self, f"{self.name}-{next(_numbers)}")

    def call(
        self, verb: str, conf: Mapping[str, Any], container: str, pod: Path
    ) -> tuple[Any, float]:
        """Execute it; returns its result (None if there is none) and milliseconds.

        Raises AssertionError when it fails.
        """
        directories = f"{self.path.parent}:{PLUGINS}"
        answer = self.node.call(verb, conf, container, pod, plugin=self.path, CNI_PATH=directories)
        return answer.expect(), answer.ms


class PluginAttachment:
    """A pod of a Plugin, in a namespace of its own."""

    def __init__(self, plugin: Plugin, container: str) -> None:
        self._plugin, self.container = plugin, container
        self._conf = dict(plugin.conf)
        self.pod = plugin.node.pod(container)
        if previous := plugin.previous:
            self._conf["prevResult"] = previous.call("ADD", previous.conf, container, self.pod)[0]

    def call(self, verb: str) -> float:
        result, ms = self._plugin.call(verb, self._conf, self.container, self.pod)
        if verb == "ADD":
            assert result, f"{self._plugin.name}: ADD printed no result"
            self._conf["prevResult"] = result
        return ms

    def release(self) -> None:
        if previous := self._plugin.previous:
            previous.call("DEL", previous.conf, self.container, self.pod)
        self._plugin.node.lab.drop(self.pod)


@dataclass(frozen=True)
class BinTrue:
    """A process that does nothing: what any plugin needs to be executed."""

    node: Node
    name: str = "/bin/true"
    role: str = "floor"
    verbs: Sequence[str] = ("ADD",)

    def attachment(self) -> BinTrue:
        return self

    def call(self, verb: str) -> float:
        return self.node.execute(Path("/bin/true"), {}, b"").ms

    def release(self) -> None:
        pass


def vmlink(
    kind: AttachmentType, node: Node, subnet: int, stack: ExitStack, suffix: str = ""
) -> Plugin:
    """A plugin vmlink that makes one type of attachment, with addresses of 10.`subnet`.0.0/16.

    A `suffix` of its name gives it a network of its own. Closing `stack` removes the uplink.
    """
    name = "-".join(filter(None, (kind.name, suffix)))
    network = f"bench-{name}"
    if kind.uplink == "chained":
        ptp = debian("ptp", node, subnet)
        first = Plugin(network, "peer", node, ptp.path, {**ptp.conf, "name": network})
        conf = {"cniVersion": "1.0.0", "type": "vmlink", "mode": kind.mode}
        return Plugin(name, "vmlink", node, CLIENT, conf | {"name": network}, first)
    made = make_network(kind, node, kind.name, node.path, stack)
    conf = made.conf | {"name": network, "ipam": _ipam(node, subnet)}
    return Plugin(name, "vmlink", node, CLIENT, conf)


def debian(kind: str, node: Node, subnet: int) -> Plugin:
    """A plugin of Debian's containernetworking-plugins; `bridge` is the baseline."""
    conf: dict[str, Any] = {"ipam": _ipam(node, subnet)}
    if kind != "bridge":
        return _plugin(kind, "peer", node, PLUGINS / kind, conf)
    conf |= {"bridge": "bench0", "isGateway": True}
    return _plugin(kind, "baseline", node, PLUGINS / kind, conf)


def peer_plugin(peer: Peer, node: Node, subnet: int) -> Plugin:
    """A plugin that the user named by --peer."""
    conf = peer.conf or {"ipam": _ipam(node, subnet)}
    return _plugin(peer.type, "peer", node, peer.path, conf)


def _ipam(node: Node, subnet: int) -> dict[str, Any]:
    return node.ipam(f"10.{subnet}.0.0/16", routes=["0.0.0.0/0"])


def _plugin(kind: str, role: str, node: Node, path: Path, extra: Mapping[str, Any]) -> Plugin:
    conf = {"cniVersion": "1.0.0", "name": f"bench-{kind}", "type": kind, **extra}
    return Plugin(kind, role, node, path, conf)
