"""What the steps of one request share: namespaces and their netlink sockets, facts, a deadline."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from cni.attach.facts import Fact, Facts
from cni.cancel import Cancel
from cni.config.settings import DAN_DIR
from cni.ipam import delegate
from cni.ipam.reservations import Reservations
from cni.kernel.announcer import Announcer
from cni.kernel.link_deleter import LinkDeleter
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from cni.ovs.database import Database
from cni.ovs.ovn import Claims
from cni.spec.types import AttachmentKey, Result


@dataclass(frozen=True)
class Node:
    """What all requests of a node share.

    Bridges and switches are in the namespace `host`. Files of attachments are below `run_dir`,
    Kata's in `dan_dir`.
    """

    host: Namespace
    deleter: LinkDeleter
    run_dir: Path
    ovs: Database
    dan_dir: Path = Path(DAN_DIR)
    reservations: Reservations = field(default_factory=Reservations)
    logical_ports: Claims = field(default_factory=Claims)
    announcer: Announcer = field(default_factory=Announcer)


@dataclass(frozen=True)
class PromisedAddresses(Fact):
    """The addresses that are on their way; `wait` returns them, after so many seconds at most.

    `wait` raises what the IPAM plugin refused with, or DeadlineExceeded.
    """

    stored: ClassVar[bool] = False
    wait: Callable[[float], Result]


class Context:
    """One request on its way through the steps of a plan.

    `clean` turns false when an undo fails. `recorded` is false at a DEL without a record: it is not
    known that its ADD was ever begun.
    """

    log = logging.getLogger("vmlink")

    def __init__(
        self,
        *,
        key: AttachmentKey,
        node: Node,
        host_netlink: Netlink,
        pod: Namespace | None,
        cancel: Cancel,
        ipam_call: delegate.Call,
        pod_links: tuple[str, ...] = (),
        facts: Facts | None = None,
        timings: dict[str, float] | None = None,
    ) -> None:
        self.key = key
        self.node = node
        self.host_netlink = host_netlink
        self.pod_or_none = pod
        self.cancel = cancel
        self.ipam_call = ipam_call
        self.pod_links = pod_links
        self.facts = facts or Facts()
        self.timings = {} if timings is None else timings
        self.clean = True
        self.recorded = True

    @property
    def netns_path(self) -> str:
        """CNI_NETNS of the ADD."""
        return self.ipam_call.env.get("CNI_NETNS", "")

    @property
    def pod(self) -> Namespace:
        """The pod's namespace, which `do` and `check` always have."""
        assert self.pod_or_none is not None, "the engine gives do and check a namespace"
        return self.pod_or_none

    def in_pod(self) -> AbstractContextManager[None]:
        """Enter the pod's namespace with the calling thread, whose home is the host's."""
        return self.pod.entered_from(self.node.host.fd)

    @cached_property
    def pod_netlink(self) -> Netlink:
        """A netlink socket of the pod's namespace, opened when it is first used."""
        with self.in_pod():
            return Netlink()

    def addresses(self) -> Result:
        """Return the pod's addresses and routes, once the IPAM plugin has answered.

        A layer-2 network has none. Raises IpamFailed or DeadlineExceeded.
        """
        if promised := self.facts.get(PromisedAddresses):
            return promised.wait(self.cancel.remaining())
        return Result()

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        if opened := self.__dict__.pop("pod_netlink", None):
            opened.close()
