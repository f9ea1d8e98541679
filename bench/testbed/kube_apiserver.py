"""A fake Kubernetes API server: list and watch of pods, and ways to make them fail.

    with FakeApiServer() as api:
        api.put("shop", "web", uid="u1", annotations={"a": "b"})
        api.kubeconfig(path)

It implements, as "Kubernetes API Concepts" describes them, resourceVersion, chunked watch events
(ADDED, MODIFIED, DELETED, BOOKMARK, ERROR with 410), fieldSelector and bearer tokens. Limits: only
`/api/v1/pods`, only the selector spec.nodeName, no paging, one version counter for everything.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from bench.testbed.slowness import SLOWNESS

_TOKEN = "tests"
Pod = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """A change of a pod; `before` is None when it was made, `now` when it was deleted."""

    version: int
    before: Pod | None
    now: Pod | None

    def seen_by(self, node: str) -> tuple[str, Pod] | None:
        """The type and object of the event in a watch of one node's pods; None if not in it.

        A pod that moves to the node is ADDED there.
        """
        was, is_ = (pod and pod["spec"].get("nodeName") == node for pod in (self.before, self.now))
        pod = self.now if is_ else self.before
        if pod is None or not (was or is_):
            return None
        kind = "DELETED" if not is_ else "MODIFIED" if was else "ADDED"
        meta = {**pod["metadata"], "resourceVersion": str(self.version)}
        return kind, {**pod, "metadata": meta}


class FakeApiServer:
    """A server on the loopback of the namespace in which it is made.

    `node` is where pods are by default; `tls` are the files of a self-signed certificate and of its
    key (PEM). Set `status` to answer every request with that HTTP status. `requests` are the paths
    asked for so far.
    """

    def __init__(self, node: str = "node1", tls: tuple[Path, Path] | None = None) -> None:
        self.node = node
        self._tls = tls
        self.status = 0
        self.requests: list[str] = []
        self.changed = threading.Condition()  # guards what follows
        self.version = 100
        self.oldest = 0  # the first version that a watch may still start from
        self.bookmarks = 0
        self.epoch = 0  # a watch ends when this is no longer that of its start
        self.down = False
        self._pods: dict[tuple[str, str], Pod] = {}
        self._events: list[Event] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.api = self
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_watches()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig for this server to `path`, in JSON, which is YAML too."""
        name, cluster = {"name": "tests"}, {"server": self.url}
        cluster |= {"certificate-authority": str(self._tls[0])} if self._tls else {}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "clusters": [{**name, "cluster": cluster}],
            "users": [{**name, "user": {"token": _TOKEN}}],
            "contexts": [{**name, "context": {"cluster": "tests", "user": "tests"}}],
        }
        path.write_text(json.dumps(content))
        return path

    def put(self, namespace: str, name: str, **fields: Any) -> None:
        """Make or change a pod: `uid`, `annotations`, `node`, `runtime_class`.

        Annotations are merged with those that the pod has; None removes one. A new `uid` replaces
        the pod.
        """
        before = self._pods.get((namespace, name))
        if before and fields.get("uid", before["metadata"]["uid"]) != before["metadata"]["uid"]:
            self.delete(namespace, name)
            before = None
        meta: Pod = {"namespace": namespace, "name": name}
        meta |= before["metadata"] if before else {}
        spec = dict(before["spec"]) if before else {"nodeName": self.node, "containers": []}
        meta["uid"] = fields.get("uid", meta.get("uid", f"uid-{name}"))
        merged: dict[str, Any] = {**(meta.get("annotations") or {})}
        merged |= fields.get("annotations", {})
        meta["annotations"] = {k: v for k, v in merged.items() if v is not None}
        if "node" in fields:
            spec["nodeName"] = fields["node"]
        if "runtime_class" in fields:
            spec["runtimeClassName"] = fields["runtime_class"]
        self._change((namespace, name), {"metadata": meta, "spec": spec})

    def delete(self, namespace: str, name: str) -> None:
        """Delete a pod. Raises KeyError when there is none."""
        self._change((namespace, name), None)

    def _change(self, key: tuple[str, str], now: Pod | None) -> None:
        with self.changed:
            self.version += 1
            self._events.append(Event(self.version, self._pods.get(key), now))
            if now is None:
                del self._pods[key]
            else:
                self._pods[key] = now
            self.changed.notify_all()

    def bookmark(self) -> None:
        """Send a bookmark with the newest version to the watches."""
        with self.changed:
            self.version += 1
            self.bookmarks += 1
            self.changed.notify_all()

    def forget(self) -> None:
        """Forget older versions, as compaction does: a watch from one of them gets 410."""
        with self.changed:
            self.oldest = self.version
            self._events.clear()

    def end_watches(self) -> None:
        """End all watches in an orderly way."""
        with self.changed:
            self.epoch += 1
            self.changed.notify_all()

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Break all watches, and answer no request until the block ends."""
        self.down = True
        self.end_watches()
        try:
            yield
        finally:
            self.down = False

    def watches(self, count: int, seconds: float = 10) -> None:
        """Wait until so many watches have been requested in all. Raises AssertionError."""

        def requested() -> bool:
            return sum("watch=1" in line for line in self.requests) >= count

        with self.changed:
            if not self.changed.wait_for(requested, seconds * SLOWNESS):
                raise AssertionError(f"fewer than {count} watches in {self.requests}")

    def pod_list(self, node: str) -> dict[str, Any]:
        """The answer to a list request for a node's pods."""
        with self.changed:
            items = [p for p in self._pods.values() if p["spec"].get("nodeName") == node]
            meta = {"resourceVersion": str(self.version)}
        return {"kind": "PodList", "apiVersion": "v1", "metadata": meta, "items": items}

    def has_news(self, version: int, bookmarks: int, epoch: int) -> bool:
        """Whether a watch that is at this point has an event to send, or must end."""
        return bool(self.after(version)) or (self.bookmarks, self.epoch) != (bookmarks, epoch)

    def after(self, version: int) -> list[Event]:
        """The changes after a version, oldest first."""
        return [event for event in self._events if event.version > version]


class _Server(ThreadingHTTPServer):
    api: FakeApiServer
    daemon_threads = True
    block_on_close = False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        """Answer a list or watch request (http.server)."""
        api, url = self.server.api, urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if api.down:
            self._break()
            return
        with api.changed:
            api.requests.append(self.path)
            api.changed.notify_all()
        node = query.get("fieldSelector", "").removeprefix("spec.nodeName=")
        if api.status:
            self._answer(api.status, _status(api.status, "set by the test"))
        elif self.headers.get("Authorization") != f"Bearer {_TOKEN}":
            self._answer(401, _status(401, "Unauthorized"))
        elif url.path != "/api/v1/pods" or not node:
            self._answer(404, _status(404, f"not served here: {self.path}"))
        elif query.get("watch") in ("1", "true"):
            with suppress(OSError):  # the client has hung up
                self._watch(node, query)
        else:
            self._answer(200, api.pod_list(node))

    def _watch(self, node: str, query: dict[str, str]) -> None:
        api, version = self.server.api, int(query.get("resourceVersion") or 0)
        with api.changed:
            epoch, bookmarks, expired = api.epoch, api.bookmarks, version < api.oldest
        self._begin_chunks()
        if expired:
            self._chunk({"type": "ERROR", "object": _status(410, "too old resource version")})
        ended = expired
        deadline = time.monotonic() + float(query.get("timeoutSeconds", "1800"))
        while not ended and (left := deadline - time.monotonic()) > 0:
            seen = (version, bookmarks, epoch)
            with api.changed:
                changed = api.changed.wait_for(partial(api.has_news, *seen), left)
                events, sent, newest = api.after(version), bookmarks, api.version
                bookmarks, ended = api.bookmarks, api.epoch != epoch or not changed
            if api.down:
                break
            for event in events:
                version = event.version
                self._send_event(event, node)
            if bookmarks != sent and query.get("allowWatchBookmarks"):
                self._send_bookmark(newest)
        if api.down:
            self._break()
        else:
            self._chunk(None)

    def _begin_chunks(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _send_event(self, event: Event, node: str) -> None:
        if shown := event.seen_by(node):
            self._chunk({"type": shown[0], "object": shown[1]})

    def _send_bookmark(self, version: int) -> None:
        meta = {"metadata": {"resourceVersion": str(version)}}
        self._chunk({"type": "BOOKMARK", "object": {"kind": "Pod", **meta}})

    def _chunk(self, event: dict[str, Any] | None) -> None:
        line = b"" if event is None else json.dumps(event).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _break(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Log nothing: the output belongs to the test."""


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "status": "Failure", "code": code, "message": message}
