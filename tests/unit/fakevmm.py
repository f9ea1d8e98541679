"""Servers that say what a VMM's documentation says, and remember what they were told."""

import array
import json
import os
import socket
import threading
from contextlib import contextmanager


class Heard:
    """Requests in their order; `fds` are (device, inode) of each descriptor that came."""

    def __init__(self):
        self.requests = []
        self.fds = []


def _receive(conn, heard):
    """Bytes, and with them descriptors, which are looked at and closed."""
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
def _served(path, talk):
    heard = Heard()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(10)

        def serve():
            conn, _ = listener.accept()
            with conn:
                conn.settimeout(10)
                talk(conn, heard)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield heard
        finally:
            thread.join()


def qemu(path, answers=None, events=None, greeting=b'{"QMP": {"version": {}}}\r\n'):
    """A monitor. `answers` are by command, {"return": {}} for the others; None is no answer.
    `events` come right before or after (with a "+") the answer to a command.
    """
    answers, events = answers or {}, events or {}

    def talk(conn, heard):
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


def cloud_hypervisor(path, status="204 No Content", body=b""):
    """The HTTP API, for one request."""

    def talk(conn, heard):
        data = _receive(conn, heard)
        head, _, content = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:])
        while len(content) < int(fields["content-length"]):
            content += _receive(conn, heard)
        heard.requests.append((lines[0], fields["content-type"], json.loads(content)))
        answer = f"HTTP/1.1 {status}\r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n"
        answer += f"Content-Length: {len(body)}\r\n" if body else ""
        conn.sendall(answer.encode() + b"\r\n" + body)

    return _served(path, talk)
