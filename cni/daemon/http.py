"""One HTTP request of a connection: read with all its bytes, answered, or passed on.

The protocol is h11's (RFC 9112). A connection carries one request; who has another connects anew.
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
    """`raw` is all of it as it came."""

    method: str
    path: str
    body: bytes
    raw: bytes


def receive(conn: socket.socket) -> HttpRequest:
    """Waits for each piece as long as the timeout of `conn` says.

    Raises CannotDecode when it is none or too large, IOFailure when it is cut short.
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
                    raise CannotDecode(f"a request of more than {_MOST} bytes")
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
                raise CannotDecode("expected one request, and nothing behind it")
    except h11.RemoteProtocolError as e:
        raise CannotDecode(f"not HTTP/1.1: {e}") from e
    except OSError as e:  # its timeout, too
        raise IOFailure(f"the request did not arrive: {e}") from e


def answer(conn: socket.socket, status: int, content: Mapping[str, Any] | None) -> None:
    """JSON, or nothing. Raises OSError when the peer has gone."""
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
    """Send `raw` to the unix socket `path`, and what comes back to `conn`, until one side ends.

    Raises IOFailure while nothing has come back yet, DeadlineExceeded after so many seconds.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as there:
        there.settimeout(seconds)
        try:
            there.connect(path)
            there.sendall(raw)
        except OSError as e:
            raise IOFailure(f"kube-ovn's daemon does not answer at {path}: {e}") from e
        if not _copy(there, conn, time.monotonic() + seconds):
            raise IOFailure(f"kube-ovn's daemon at {path} ended the connection without an answer")


def _copy(there: socket.socket, conn: socket.socket, deadline: float) -> int:
    """Bytes that came back. The peer ends it: by hanging up, or by a second request, which is not
    for this connection."""
    poll = select.poll()
    poll.register(there, select.POLLIN)
    poll.register(conn, select.POLLIN)
    count = 0
    while True:
        ready = [fd for fd, _ in poll.poll(max(deadline - time.monotonic(), 0) * 1000)]
        if not ready and not count:
            raise DeadlineExceeded("kube-ovn's daemon has not answered in time")
        if not ready:
            return count
        if conn.fileno() in ready:
            return count or 1
        piece = _received(there)
        if not piece:
            return count
        conn.sendall(piece)
        count += len(piece)


def _received(there: socket.socket) -> bytes:
    try:
        return there.recv(_CHUNK)
    except ConnectionError:
        return b""
