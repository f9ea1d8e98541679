"""What the steps of one request share: namespaces, their netlink sockets, facts, patience."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cni.cancel import Cancel
from cni.config.settings import DAN_DIR
from cni.ipam import delegate
from cni.ipam.reservations import Claims
from cni.kernel.link_deleter import LinkDeleter
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from cni.ovs.database import Database
from cni.ovs.operations import Pending
from cni.spec.types import AttachmentKey, Result


@dataclass(frozen=True)
class Node:
    """What all requests share: the namespace `host` is where bridges and switches are; what
    attachments leave in the file system is below `run_dir`, and Kata's files in `dan_dir`."""

    host: Namespace
    reaper: LinkDeleter
    run_dir: Path
    ovs: Database
    dan_dir: Path = Path(DAN_DIR)
    claims: Claims = field(default_factory=Claims)


class Context:
    """`facts` are what a step found or chose while it was done; they go into the record."""

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
        facts: dict[str, Any] | None = None,
        timings: dict[str, float] | None = None,
    ) -> None:
        self.key = key
        self.node = node
        self.host = node.host
        self.reaper = node.reaper
        self.host_netlink = host_netlink
        self.pod_or_none = pod
        self.cancel = cancel
        self.ipam_call = ipam_call
        self.pod_links = pod_links
        self.facts = {} if facts is None else facts
        self.timings = {} if timings is None else timings
        self.clean = True
        self.pending_port: Pending | None = None
        self.pending_ipam: Callable[[float], Result] | None = None
        self._addresses = Result()

    @property
    def netns_path(self) -> str:
        return self.ipam_call.env.get("CNI_NETNS", "")

    @property
    def pod(self) -> Namespace:
        assert self.pod_or_none is not None, "the engine gives do and check a namespace"
        return self.pod_or_none

    def in_pod(self) -> AbstractContextManager[None]:
        """The calling thread, whose home is the host's namespace, is in the pod's."""
        return self.pod.entered_from(self.host.fd)

    @cached_property
    def pod_netlink(self) -> Netlink:
        with self.in_pod():
            return Netlink()

    def ipam(self) -> Result:
        """The addresses; waits for the IPAM plugin that a step before has started."""
        if self.pending_ipam:
            self._addresses = self.pending_ipam(self.cancel.remaining())
            self.pending_ipam = None
        return self._addresses

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        if opened := self.__dict__.pop("pod_netlink", None):
            opened.close()
