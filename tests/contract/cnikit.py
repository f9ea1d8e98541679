"""Shared by the black-box tests: configurations, environments, and checks of an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.testbed.node import CLIENT, PLUGINS, Answer, Node
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from cni.spec.types import AttachmentKey

ABSENT = object()
KEY = AttachmentKey("c1", "eth0")
VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
SUBNETS = ("10.9.0.0/24", "fd00:9::/64")
ATTACHMENT = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")
# The table in contract.md, deliberately not imported from cni.
NEEDS = {
    "ADD": ATTACHMENT,
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": ATTACHMENT,
    "GC": ("CNI_PATH",),
    "STATUS": ("CNI_PATH",),
}
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}


def has(verb: str, version: str) -> bool:
    return VERSIONS.index(version) >= VERSIONS.index(SINCE.get(verb, VERSIONS[0]))


def config(node: Node, **change: Any) -> dict[str, Any]:
    """A valid configuration; a key set to ABSENT is left out."""
    base = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "vmlink",
        "linux": {"bridge": "br0"},
        "ipam": node.ipam(*SUBNETS, routes=["0.0.0.0/0", "::/0"]),
    }
    return {k: v for k, v in (base | change).items() if v is not ABSENT}


def full(node: Node, **change: Any) -> dict[str, Any]:
    """A configuration that is valid for every verb, but for what the test changes."""
    return config(node, **{**valid(), **change})


def valid(*attachments: tuple[str, str]) -> dict[str, Any]:
    """The list that GC needs, to be merged into a configuration."""
    pairs = [{"containerID": c, "ifname": i} for c, i in attachments]
    return {"cni.dev/valid-attachments": pairs}


def variables(verb: str, netns: Path | str, **change: str | None) -> dict[str, str]:
    """The environment of a valid call; a variable set to None is left out."""
    base: dict[str, str | None] = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": "c1",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": str(netns),
        "CNI_PATH": str(PLUGINS),
    }
    return {k: v for k, v in (base | change).items() if v is not None}


def run(
    node: Node, verb: str, netns: Path | str, stdin: Mapping[str, Any] | bytes, **change: str | None
) -> Answer:
    raw = stdin if isinstance(stdin, bytes) else json.dumps(stdin).encode()
    return node.execute(CLIENT, variables(verb, netns, **change), raw)


def fails(answer: Answer, code: int, *words: str) -> str:
    """Check that the answer is a CNI error with this code and all `words` in its message.

    Returns the message.
    """
    assert answer.code == code, answer.raw[:2000]
    assert {"cniVersion", "code", "msg"} <= set(answer.out) <= {*answer.out, "details"}
    assert answer.out["code"] == code
    assert isinstance(answer.out["cniVersion"], str)
    message = answer.out["msg"]
    assert message
    assert "\n" not in message
    assert not [w for w in words if w not in message], message
    return str(message)


def refuses(verb: str, answer: Answer, code: int, *words: str) -> None:
    """Check that the answer is this error; that of a DEL, which undoes what it can, is success."""
    if verb == "DEL":
        silent(answer)
    else:
        fails(answer, code, *words)


def silent(answer: Answer) -> None:
    """Check that the call succeeded and printed nothing."""
    assert (answer.code, answer.raw) == (0, b"")


@contextmanager
def attached(
    node: Node, pod: Path, conf: Mapping[str, Any], container: str = "c1", **env: str
) -> Iterator[dict[str, Any]]:
    """The result of an ADD. A DEL follows; it is harmless if the test has already sent one."""
    try:
        yield node.call("ADD", conf, container, pod, "eth0", CLIENT, **env).expect()
    finally:
        silent(node.call("DEL", conf, container, pod, "eth0", CLIENT, **env))


def links(path: Path) -> set[str]:
    with Namespace.open(str(path)) as ns, ns.entered(), Netlink() as netlink:
        return {link.name for link in netlink.links()}


def shown(node: Node, pod: Path, name: str) -> dict[str, Any]:
    """What ip(8) says about a link in the pod."""
    out = node.run(["ip", "-json", "-details", "address", "show", "dev", name], pod).stdout
    found: list[dict[str, Any]] = json.loads(out)
    return found[0]


def foreign(node: Node, pod: Path, name: str = "eth0", address: str = "10.5.0.2/24") -> None:
    """Make an interface such as another plugin might have made."""
    far = f"far-{name}"
    node.run(["ip", "link", "add", name, "type", "veth", "peer", "name", far], pod)
    node.run(["ip", "address", "add", address, "dev", name], pod)
    for each in (name, far):
        node.run(["ip", "link", "set", each, "up"], pod)


def chained(node: Node, pod: Path, **change: Any) -> dict[str, Any]:
    """Vmlink's configuration when it is chained after the plugin that made `foreign`."""
    prev = {
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "far-eth0"},
            {"name": "eth0", "mac": shown(node, pod, "eth0")["address"], "sandbox": str(pod)},
        ],
        "ips": [{"address": "10.5.0.2/24", "gateway": "10.5.0.1", "interface": 1}],
        "routes": [],
        "dns": {"nameservers": ["10.5.0.53"]},
    }
    return config(node, linux=ABSENT, ipam=ABSENT, **{"prevResult": prev, **change})


def script(directory: Path, name: str, body: str) -> None:
    """Write an executable plugin into a directory for CNI_PATH."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def records(node: Node) -> list[Path]:
    return list((node.run_dir / "state").glob("*.json"))


def left(kind: str) -> set[str]:
    """The links in the pod after its DEL."""
    return {"lo", "eth0", "far-eth0"} if kind == "chained" else {"lo"}
