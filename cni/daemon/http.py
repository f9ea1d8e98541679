"""HTTP/1.1 with one request on each connection: receive it, answer it, or pass its bytes on.

The protocol (RFC 9112) is h11's.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import h11

from cni.errors import CannotDecode, DeadlineExceeded, IOFailure

_MOST = 1 << 20  # bytes of a request, head and body
_CHUNK = 1 << 16


@dataclass(frozen=True)
class HttpRequest:
    """A request, and all its bytes as they came."""

    method: str
    path: str
    body: bytes
    raw: bytes


def receive(conn: socket.socket) -> HttpRequest:
    """Receive a request; the timeout of `conn` is for each piece of it.

    Raises CannotDecode when it is not HTTP/1.1 or too large, IOFailure when it does not arrive
    whole.
    """
    parser = h11.Connection(h11.SERVER)
    raw, body = bytearray(), bytearray()
    head: h11.Request | None = None
    try:
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                piece = conn.recv(_CHUNK)
                raw += piece
                if len(raw) > _MOST:
                    raise CannotDecode(f"the request has more than {_MOST} bytes")
                parser.receive_data(piece)
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and head and not parser.trailing_data[0]:
                return HttpRequest(
                    head.method.decode(), head.target.decode(), bytes(body), bytes(raw)
                )
            else:
                raise CannotDecode("expected one request, and nothing after it")
    except h11.RemoteProtocolError as e:
        raise CannotDecode(f"not HTTP/1.1: {e}") from e
    except OSError as e:  # TimeoutError is one, too
        raise IOFailure(f"the request did not arrive: {e}") from e


def answer(conn: socket.socket, status: int, content: Mapping[str, Any] | None) -> None:
    """Send a response with JSON, or with no content. Raises OSError when the peer has gone."""
    body = b"" if content is None else json.dumps(content).encode()
    headers = [("Connection", "close")]
    if content is not None:
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    writer = h11.Connection(h11.SERVER)
    reason = {200: b"OK", 204: b"No Content"}.get(status, b"Error")
    out = writer.send(h11.Response(status_code=status, headers=headers, reason=reason)) or b""
    out += (writer.send(h11.Data(data=body)) or b"") if body else b""
    conn.sendall(out + (writer.send(h11.EndOfMessage()) or b""))


def pass_on(conn: socket.socket, raw: bytes, path: str, seconds: float) -> None:
    """Send `raw` to the unix socket `path`, and what it answers to `conn`, until one side ends.

    Raises IOFailure when there is no answer, DeadlineExceeded when none has begun after `seconds`;
    once a part of it was sent on, nothing is raised.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as daemon:
        daemon.settimeout(seconds)
        try:
            daemon.connect(path)
            daemon.sendall(raw)
        except OSError as e:
            raise IOFailure(
                f"kube-ovn's daemon does not answer at {path}: {e}; is kube-ovn-cni running?"
            ) from e
        if not _copy(daemon, conn, time.monotonic() + seconds):
            raise IOFailure(
                f"kube-ovn's daemon at {path} ended the connection without an answer; see its log"
            )


def _copy(daemon: socket.socket, conn: socket.socket, deadline: float) -> int:
    """Copy the answer to `conn`; return 0 when there was none.

    The peer ends it, too: by hanging up, or with a second request, which is not for this
    connection.
    """
    poll = select.poll()
    poll.register(daemon, select.POLLIN)
    poll.register(conn, select.POLLIN)
    count = 0
    while True:
        ready = [fd for fd, _ in poll.poll(max(deadline - time.monotonic(), 0) * 1000)]
        if not ready and not count:
            raise DeadlineExceeded("kube-ovn's daemon has not answered in time; see its log")
        if not ready:
            return count
        if conn.fileno() in ready:
            return count or 1
        piece = _received(daemon)
        if not piece:
            return count
        conn.sendall(piece)
        count += len(piece)


def _received(daemon: socket.socket) -> bytes:
    """Return b"" at the end, in whichever way the daemon ends the connection."""
    try:
        return daemon.recv(_CHUNK)
    except ConnectionError:
        return b""
