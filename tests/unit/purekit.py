"""Helpers for unit tests: requests, configurations, a Context without a kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cni.attach.context import Context, Node, PromisedAddresses
from cni.attach.facts import Fact, Facts
from cni.cancel import Cancel
from cni.config import network
from cni.config.network import Chosen, NetConf
from cni.modes import rules
from cni.spec.types import AttachmentKey, Request, Result

KEY = AttachmentKey("c1", "eth0")
NETNS = "/run/netns/x"
BASE = {"cniVersion": "1.1.0", "name": "net", "type": "vmlink"}
IPAM = {"type": "host-local", "subnet": "10.0.0.0/24"}
PREV = {"interfaces": [{"name": "eth0", "sandbox": "/n"}]}
REQUEST, CREATE_EXCL = 0x1, 0x601  # flags of a netlink message

# What kube-ovn's controller writes about an attachment of one pod, without the provider.
POD_MAC = "00:00:00:0a:0b:0c"
_ANNOTATIONS = {
    "allocated": "true",
    "routed": "true",
    "logical_switch": "ovn-default",
    "mac_address": POD_MAC,
    "ip_address": "10.16.0.5",
    "cidr": "10.16.0.0/16",
    "gateway": "10.16.0.1",
}
# Stands for the namespaces, sockets and connections of a Context: a test that uses one fails.
_ABSENT: Any = None


def context(
    *facts: Fact,
    addresses: Result | None = None,
    seconds: float = 60,
    gone: Callable[[], bool] = lambda: False,
    key: AttachmentKey = KEY,
) -> Context:
    """A Context without a kernel. Its IPAM plugin answers with `addresses`."""
    promised = PromisedAddresses(lambda _seconds: addresses or Result())
    return Context(
        key=key,
        node=Node(_ABSENT, _ABSENT, _ABSENT, _ABSENT),
        host_netlink=_ABSENT,
        pod=None,
        cancel=Cancel(seconds, gone),
        ipam_call=_ABSENT,
        facts=Facts(promised, *facts),
    )


def request(conf: dict[str, Any], args: dict[str, str] | None = None, verb: str = "ADD") -> Request:
    """A call of the network `net`; `args` is CNI_ARGS."""
    return Request(verb, "1.1.0", {**BASE, **conf}, b"", {}, args or {})


def parse(
    conf: dict[str, Any],
    args: dict[str, str] | None = None,
    verb: str = "ADD",
    chosen: Chosen | None = None,
) -> NetConf:
    """The configuration of a call, parsed."""
    return network.parse(request(conf, args, verb), rules(), chosen)


def netconf(**conf: Any) -> NetConf:
    """The same for the attachment KEY in the namespace NETNS."""
    call = Request("ADD", "1.1.0", {**BASE, **conf}, b"", {}, {}, KEY, NETNS)
    return network.parse(call, rules())


def kubeovn_annotations(provider: str = "ovn", /, **change: str | None) -> dict[str, str]:
    """The annotations that kube-ovn's controller writes, with changes; None takes one away."""
    fields: dict[str, str | None] = {**_ANNOTATIONS, **change}
    return {f"{provider}.kubernetes.io/{k}": v for k, v in fields.items() if v is not None}


def descriptors() -> list[str]:
    """The open descriptors of this process."""
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def pyroute(
    cls: Callable[[], Any], kind: int, flags: int, fields: dict[str, Any], attrs: list[Any]
) -> bytes:
    """A netlink message as pyroute2 encodes it; `cls` is its class for the message's body."""
    message = cls()
    message["header"] = {"type": kind, "flags": flags, "sequence_number": 7, "pid": 0}
    message.update(fields)
    message["attrs"] = attrs
    message.encode()
    return bytes(message.data)
