"""A node in a cluster with kube-ovn: API server, annotations, kube-ovn's plugin and daemon."""

from __future__ import annotations

import json
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.testbed.kube_apiserver import FakeApiServer
from bench.testbed.node import BIN, Node
from bench.testbed.slowness import SLOWNESS
from tests.ovs.ovskit import switched

MAC = "00:00:00:0a:0b:0c"
PROVIDER_FIELDS = {
    "allocated": "true",
    "routed": "true",
    "logical_switch": "ovn-default",
    "pod_nic_type": "veth-pair",
    "mac_address": MAC,
    "ip_address": "10.16.0.5",
    "cidr": "10.16.0.0/16",
    "gateway": "10.16.0.1",
}
DUAL = {
    "ip_address": "10.16.0.5,fd00:10:16::5",
    "cidr": "10.16.0.0/16,fd00:10:16::/112",
    "gateway": "10.16.0.1,fd00:10:16::1",
}


def written(provider: str = "ovn", **change: str | None) -> dict[str, str]:
    """The annotations that kube-ovn's controller writes; a field set to None is left out."""
    fields = {**PROVIDER_FIELDS, **change}
    return {f"{provider}.kubernetes.io/{k}": v for k, v in fields.items() if v is not None}


@contextmanager
def clustered(**settings: Any) -> Iterator[tuple[Node, FakeApiServer]]:
    """A node with Open vSwitch; its vmlinkd watches an API server in the node's namespace."""
    with switched() as node, node.namespace.entered(), FakeApiServer() as api:
        kubeconfig = api.kubeconfig(node.lab.dir / "kubeconfig")
        known = {"node": api.node, "kubeconfig": str(kubeconfig)}
        # JSON is valid YAML.
        content = json.dumps({"kubernetes": known, **settings})
        (node.lab.dir / "vmlinkd.yaml").write_text(content)
        start(node)
        yield node, api


def start(node: Node) -> None:
    node.start((str(BIN / "vmlinkd"), "--config", str(node.lab.dir / "vmlinkd.yaml")))


def pod_args(name: str = "web", uid: str = "") -> str:
    """CNI_ARGS, in which a runtime names the pod."""
    named = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name}"
    return named + (f";K8S_POD_UID={uid}" if uid else "")


def appear(api: FakeApiServer, name: str = "web", **fields: Any) -> str:
    """Create a pod, by a new UID distinct from any earlier one; return its CNI_ARGS."""
    uid = uuid.uuid4().hex
    api.put("shop", name, uid=uid, **fields)
    return pod_args(name, uid)


@dataclass
class KubeOvnDaemon:
    """Stands in for kube-ovn's own daemon and records what it receives.

    It keeps its connections open, as Go's HTTP server does.
    """

    path: Path
    reply: bytes = b""
    got: list[bytes] = field(default_factory=list)

    def __enter__(self) -> KubeOvnDaemon:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self.path.unlink()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                conn = self._listener.accept()[0]
                with conn:
                    self.got.append(read_message(conn))
                    conn.sendall(self.reply)
                    conn.recv(1)  # until vmlinkd hangs up


def read_message(conn: socket.socket) -> bytes:
    """Read one HTTP message, head and body, by its Content-Length."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        piece = conn.recv(65536)
        if not piece:
            return raw
        raw += piece
    head, _, body = raw.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    while len(body) < length:
        piece = conn.recv(65536)
        assert piece, raw
        body += piece
    return head + b"\r\n\r\n" + body


def plugin_request(verb: str, pod: Path | str, **change: Any) -> bytes:
    """The request that kube-ovn's plugin sends, byte by byte as Go's net/http writes it."""
    content = {
        "cni_type": "kube-ovn",
        "pod_name": "web",
        "pod_namespace": "shop",
        "container_id": "c1",
        "net_ns": str(pod),
        "if_name": "eth0",
        "provider": "ovn",
        "routes": None,
        "dns": {},
        "vf_driver": "",
        "deviceID": "",
        "vhost_user_socket_volume_name": "",
        "vhost_user_socket_name": "",
        "vhost_user_socket_consumption": "",
        **change,
    }
    body = json.dumps(content).encode()
    head = (
        f"POST /api/v1/{verb} HTTP/1.1\r\nHost: dummy\r\nUser-Agent: gorequest\r\n"
        f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\n"
        "Accept-Encoding: gzip\r\n\r\n"
    )
    return head.encode() + body


def send(path: Path, raw: bytes) -> tuple[bytes, bytes]:
    """Send a request; return the whole answer and its body."""
    with socket.socket(socket.AF_UNIX) as conn:
        conn.settimeout(20 * SLOWNESS)
        conn.connect(str(path))
        conn.sendall(raw)
        answer = read_message(conn)
    return answer, answer.partition(b"\r\n\r\n")[2]
