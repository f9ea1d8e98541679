"""A server in place of vmlinkd, and the real client started against it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from bench.testbed.slowness import SLOWNESS
from cni.spec import protocol
from tests import waits

CONF = b'{"cniVersion": "1.0.0", "name": "n", "type": "vmlink"}'
until = partial(waits.until, seconds=5)
DEL = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}


class FakeDaemon:
    """A directory for a socket and a queue, and clients that are started against it."""

    def __init__(self, client: Path, home: Path) -> None:
        self.client, self.home = client, home
        self.path = home / "s"
        self.queue = home / "queue"
        self.socket: socket.socket | None = None
        self.started: list[subprocess.Popen[bytes]] = []

    def listen(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10 * SLOWNESS)
        self.socket.bind(str(self.path))
        self.socket.listen()

    def accept(self) -> socket.socket:
        assert self.socket
        conn, _ = self.socket.accept()
        conn.settimeout(10 * SLOWNESS)
        return conn

    def start(self, env: dict[Any, Any], stdin: bytes = CONF, *via: str) -> subprocess.Popen[bytes]:
        with tempfile.TemporaryFile() as file:
            file.write(stdin)
            file.seek(0)
            return self.spawn(env, file, *via)

    def spawn(self, env: dict[Any, Any], stdin: Any, *via: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        env = {b"VMLINK_SOCKET": os.fsencode(self.path), **encoded(env)}
        command = [*via, str(self.client)]
        process = subprocess.Popen(command, env=env, stdin=stdin, stdout=pipe, stderr=pipe)
        self.started.append(process)
        return process

    def close(self) -> None:
        if self.socket:
            self.socket.close()
        for process in self.started:
            with process:
                process.kill()

    def run(self, env: dict[Any, Any], stdin: bytes = CONF, *via: str) -> tuple[int, bytes]:
        return finish(self.start(env, stdin, *via))

    def fails(self, env: dict[Any, Any], stdin: bytes = CONF, *via: str) -> dict[str, Any]:
        return failure(self.run(env, stdin, *via))

    def queued(self) -> list[Path]:
        return sorted(self.queue.glob("*.del"))


def encoded(env: dict[Any, Any]) -> dict[bytes, bytes]:
    return {os.fsencode(key): os.fsencode(value) for key, value in env.items()}


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    out, err = process.communicate(timeout=10 * SLOWNESS)
    assert err == b""
    return process.returncode, out


def failure(outcome: tuple[int, bytes]) -> dict[str, Any]:
    code, out = outcome
    error: dict[str, Any] = json.loads(out)
    assert set(error) == {"cniVersion", "code", "msg", "details"}
    assert error["code"] == code != 0
    return error


def answer(absent: FakeDaemon, raw: bytes) -> protocol.Frame:
    """Read a request, send `raw` and hang up."""
    with absent.accept() as conn:
        frame, fd = protocol.receive(conn)
        if fd is not None:
            os.close(fd)
        conn.sendall(raw)
    return frame
