"""A connection to QEMU's monitor (QMP), which can pass descriptors.

Sources: QEMU, "QEMU Machine Protocol Specification"; QEMU QMP Reference Manual, getfd.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any, Self

from cni.errors import VmmRefused

_CHUNK = 1 << 16


class NoDevice(VmmRefused):
    """QEMU has no device with that id (its error class DeviceNotFound)."""


class Qmp:
    """A connection to the monitor at `path`; all of its commands must end within `seconds`.

    All methods raise VmmRefused.
    """

    def __init__(self, path: str, seconds: float) -> None:
        self._path, self._seconds = path, seconds
        self._deadline = time.monotonic() + seconds
        self._buffer = b""
        self._events: list[dict[str, Any]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(seconds)
            self._socket.connect(path)
            # QEMU serves one client at a time; a second one is connected but gets no greeting.
            self._receive("its greeting; does another client hold the monitor?")
            self.execute({"execute": "qmp_capabilities"})
        except OSError as e:
            self._socket.close()
            raise VmmRefused(f"QMP {path}: cannot connect: {e.strerror or e}") from e
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def execute(self, command: dict[str, Any], fd: int | None = None) -> Any:
        """Run a command, with a descriptor if there is one; returns what QEMU returns.

        Raises NoDevice, or VmmRefused with QEMU's description.
        """
        name, data = command["execute"], json.dumps(command).encode() + b"\n"
        try:
            socket.send_fds(self._socket, [data], [] if fd is None else [fd])
        except OSError as e:
            raise VmmRefused(f"QMP {self._path}: cannot send {name}: {e.strerror or e}") from e
        while True:
            answer = self._receive(f"an answer to {name}")
            if "error" in answer:
                error = answer["error"]
                kind = NoDevice if error["class"] == "DeviceNotFound" else VmmRefused
                raise kind(f"QEMU refused {name}: {error['desc']}")
            if "return" in answer:
                return answer["return"]
            self._events.append(answer)

    def attempt(self, command: dict[str, Any]) -> VmmRefused | None:
        """Run a command; returns its error, None if it succeeded."""
        try:
            self.execute(command)
        except VmmRefused as e:
            return e
        return None

    def wait(self, names: tuple[str, ...], device: str, what: str) -> str:
        """Wait for the first of these events about a device; returns its name.

        `what` completes "waited 30 s for" in the error.
        """
        while True:
            while self._events:
                event = self._events.pop(0)
                if event.get("event") in names and event["data"].get("device") == device:
                    return str(event["event"])
            self._events.append(self._receive(what))

    def _receive(self, what: str) -> dict[str, Any]:
        """The next message; each is one line of JSON."""
        while b"\n" not in self._buffer:
            try:
                self._socket.settimeout(max(self._deadline - time.monotonic(), 0.001))
                data = self._socket.recv(_CHUNK)
            except TimeoutError as e:
                raise VmmRefused(f"QMP {self._path}: waited {self._seconds:g} s for {what}") from e
            except OSError as e:
                raise VmmRefused(f"QMP {self._path}: {e.strerror}") from e
            if not data:
                raise VmmRefused(f"QMP {self._path}: QEMU closed the connection")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError as e:
            raise VmmRefused(f"QMP {self._path}: is not a QMP monitor: it sent {line!r}") from e
        return message
