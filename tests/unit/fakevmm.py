"""Fake VMMs: servers that answer as a VMM's documentation says, and record each request."""

from __future__ import annotations

import array
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from bench.testbed.slowness import SLOWNESS

Command = dict[str, Any]  # of QMP
FileId = tuple[int, int]  # device and inode
T = TypeVar("T")


class ApiRequest(NamedTuple):
    """A request to the HTTP API of Cloud Hypervisor."""

    line: str
    content_type: str
    body: dict[str, Any]


@dataclass
class Heard(Generic[T]):
    """What a server got: the requests, and the files whose descriptors came with them, in order."""

    requests: list[T] = field(default_factory=list)
    fds: list[FileId] = field(default_factory=list)


def _receive(conn: socket.socket, heard: Heard[T]) -> bytes:
    """The next bytes. Descriptors that come with them are recorded and closed."""
    room = socket.CMSG_SPACE(64 * array.array("i").itemsize)
    data, ancillary, *_ = conn.recvmsg(1 << 16, room)
    for level, kind, raw in ancillary:
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for fd in array.array("i", raw):
            status = os.fstat(fd)
            heard.fds.append((status.st_dev, status.st_ino))
            os.close(fd)
    return data


@contextmanager
def _served(path: Path, talk: Callable[[socket.socket, Heard[T]], None]) -> Iterator[Heard[T]]:
    """Serve one client on the socket `path`, by `talk` in a thread."""
    heard: Heard[T] = Heard()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(10 * SLOWNESS)

        def serve() -> None:
            conn, _ = listener.accept()
            with conn:
                conn.settimeout(10 * SLOWNESS)
                talk(conn, heard)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield heard
        finally:
            thread.join()


def qemu(
    path: Path,
    answers: Mapping[str, Any] | None = None,
    events: Mapping[str, Any] | None = None,
    greeting: bytes = b'{"QMP": {"version": {}}}\r\n',
) -> AbstractContextManager[Heard[Command]]:
    """A QMP monitor.

    `answers` maps commands to answers. The answer is {"return": {}} for a command that is not in
    it, and None means no answer. `events` maps a command to an event that is sent right before the
    answer to it; with a "+" after the command, right after the answer.
    """
    answers, events = answers or {}, events or {}

    def talk(conn: socket.socket, heard: Heard[Command]) -> None:
        conn.sendall(greeting)
        while data := _receive(conn, heard):
            for line in data.splitlines():
                command = json.loads(line)
                heard.requests.append(command)
                name = command["execute"]
                said = [events.get(name), answers.get(name, {"return": {}}), events.get(name + "+")]
                for one in filter(None, said):
                    conn.sendall(json.dumps(one).encode() + b"\r\n")

    return _served(path, talk)


def cloud_hypervisor(
    path: Path, status: str = "204 No Content", body: bytes = b""
) -> AbstractContextManager[Heard[ApiRequest]]:
    """The HTTP API of Cloud Hypervisor, for one request."""

    def talk(conn: socket.socket, heard: Heard[ApiRequest]) -> None:
        data = _receive(conn, heard)
        head, _, content = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:])
        while len(content) < int(fields["content-length"]):
            content += _receive(conn, heard)
        heard.requests.append(ApiRequest(lines[0], fields["content-type"], json.loads(content)))
        answer = f"HTTP/1.1 {status}\r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n"
        answer += f"Content-Length: {len(body)}\r\n" if body else ""
        conn.sendall(answer.encode() + b"\r\n" + body)

    return _served(path, talk)
