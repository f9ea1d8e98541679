"""What a mode is: the rules for its configuration, its steps, and the device that they leave."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from cni.attach.context import Context, Node
from cni.attach.facts import Facts
from cni.attach.plan import Plan
from cni.cancel import Cancel
from cni.config.mode_rules import ModeRules
from cni.config.network import NetConf
from cni.errors import BadConfig
from cni.spec.types import AttachmentKey, Interface
from cni.vmm.device import Device


class Mode(ABC):
    """One way to connect a pod. It describes; only steps touch the kernel or the switch.

    `name` is what a configuration calls it; `rules` is what a configuration may ask of it.
    """

    name: ClassVar[str]
    rules: ClassVar[ModeRules]

    @abstractmethod
    def plan(self, key: AttachmentKey, conf: NetConf) -> Plan:
        """Return the steps of an attachment. Called for DEL as well, when the record is lost.

        :param key: the attachment, from which all names derive.
        :param conf: the network's configuration; at a DEL perhaps without `prev` and `lease`.
        """

    @abstractmethod
    def interfaces(
        self, key: AttachmentKey, conf: NetConf, facts: Facts, netns: str
    ) -> tuple[Interface, ...]:
        """Return the links that were made, for the CNI result; the pod's own comes first.

        :param netns: CNI_NETNS, the `sandbox` of links in the pod's namespace.
        """

    @abstractmethod
    def device(self, key: AttachmentKey, conf: NetConf, facts: Facts, netns: str) -> Device | None:
        """Return what a VMM opens; None where there is nothing for one."""

    @abstractmethod
    def ready(self, conf: NetConf, node: Node) -> None:
        """Answer STATUS.

        :raises NotReady: when an ADD cannot succeed on this node, with the remedy.
        """

    def in_pod(self, conf: NetConf) -> bool:
        """Return whether the pod's namespace has the interface that CNI promises."""
        return True

    def locate(
        self, key: AttachmentKey, conf: NetConf, node: Node, cancel: Cancel
    ) -> AttachmentKey:
        """Return the key with the prepared port that the attachment has, when its record is lost.

        :raises TryAgain: while that cannot be known.
        """
        return key

    def preparable(self, conf: NetConf, node: Node, where: str) -> NetConf:
        """Return the configuration that the pool prepares ports with, without a pod's part.

        :param where: the pool, which begins the message when it makes no sense.
        :raises BadConfig: where none can be prepared, with the remedy.
        :raises TryAgain: while that cannot be known.
        """
        raise BadConfig(f"{where}: mode {self.name} has no ports that can be prepared; drop it")

    def sweep(self, cx: Context) -> None:  # noqa: B027  # most modes have nothing to sweep
        """Remove what is left of a prepared port that neither a file nor a record names.

        `cx.key` is the port's. A missing link or file is no error.

        :raises VmlinkError: what removing raises.
        """
