"""How ports are prepared and looked at without a pod."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cni.attach.context import Context, Node
from cni.cancel import Cancel
from cni.config import network
from cni.config.network import Chosen, NetConf
from cni.daemon.pool_shelf import Shelf
from cni.daemon.pool_store import PreparedPort
from cni.ipam import delegate
from cni.kernel.netlink import Netlink
from cni.modes.base import Mode
from cni.spec.result import VERSIONS
from cni.spec.types import AttachmentKey, Request

_SECONDS = 10  # for the switch to make a batch of ports, or to look at one
_NO_IPAM = delegate.Call("", {})


class Preparer:
    """How ports are prepared and looked at: the modes of a node."""

    def __init__(self, node: Node, modes: Mapping[str, Mode]) -> None:
        self.node = node
        self.modes = modes

    def conf(self, shelf: Shelf) -> NetConf:
        """Return the configuration that the pool's ports are made with.

        Raises BadConfig, and TryAgain while the switch is away.
        """
        network_name, mode = shelf.network_and_mode
        where = f"pools.{network_name}.{mode}"
        rules = {name: each.rules for name, each in self.modes.items()}
        request = Request("STATUS", VERSIONS[-1], shelf.conf, b"", {})
        conf = network.parse(request, rules, Chosen(mode, where))
        return self.modes[conf.mode].preparable(conf, self.node, where)

    def fits(self, port: PreparedPort, key: AttachmentKey, conf: NetConf) -> bool:
        """Return whether the port is what an ADD of `key` would make."""
        made = self.modes[conf.mode].plan(replace(key, prepared=port.id), conf)
        return made.prepare == port.plan.prepare

    def context(
        self,
        port: PreparedPort,
        netlink: Netlink,
        timings: dict[str, float] | None = None,
        cancel: Cancel | None = None,
    ) -> Context:
        """Return what the port's steps need."""
        return Context(
            key=port.key,
            node=self.node,
            host_netlink=netlink,
            pod=None,
            cancel=cancel or Cancel(_SECONDS),
            ipam_call=_NO_IPAM,
            facts=port.known_facts(),
            timings=timings,
        )
