"""Vmlinkd's socket: who may connect, many connections at once, and peers that misbehave."""

from __future__ import annotations

import json
import os
import resource
import socket
import stat
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.testbed.node import BIN, Node
from bench.testbed.slowness import SLOWNESS
from cni.spec import protocol
from tests.contract.cnikit import config, run, silent


def test_socket_is_for_its_owner(mortal: Node) -> None:
    mortal.start()
    mode = mortal.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert stat.S_IMODE(mortal.run_dir.stat().st_mode) == 0o700


STRANGER = f"""
import socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.settimeout({20 * SLOWNESS})
    s.connect(sys.argv[1])
    try:
        s.sendall(bytes.fromhex(sys.argv[2]))
        print(s.recv(100))
    except (BrokenPipeError, ConnectionResetError):
        print(b"")
"""


def test_stranger_is_refused(mortal: Node) -> None:
    mortal.start()
    env = {"CNI_COMMAND": "STATUS", "CNI_PATH": "/"}
    request = protocol.encode_request(env, json.dumps(config(mortal)).encode())
    stranger = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3"]
    stranger += ["-c", STRANGER, str(mortal.socket), request.hex()]
    for directory in (mortal.lab.dir, mortal.run_dir):
        directory.chmod(0o755)
    by_mode = mortal.run(stranger, check=False)
    assert "PermissionError" in by_mode.stderr
    mortal.socket.chmod(0o666)
    by_credentials = mortal.run(stranger)
    assert by_credentials.stdout == "b''\n"
    own = mortal.run(["/usr/bin/python3", *stranger[5:]])
    assert own.stdout.startswith("b'VML1")
    assert "of user 65534 may not" in mortal.log.read_text()


ACTIVATE = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
environment = {**os.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execve(sys.argv[2], sys.argv[2:], environment)
"""


def test_socket_activation(mortal: Node, home: Path) -> None:
    path = mortal.lab.dir / "passed.sock"
    mortal.start([sys.executable, "-c", ACTIVATE, str(path), str(BIN / "vmlinkd")])
    assert not mortal.socket.exists()
    conf = config(mortal)
    run(mortal, "ADD", home, conf, VMLINK_SOCKET=str(path)).expect()
    silent(run(mortal, "DEL", home, conf, VMLINK_SOCKET=str(path)))
    mortal.stop()
    assert path.exists()


# Load


def status_request(node: Node) -> bytes:
    env = {"CNI_COMMAND": "STATUS", "CNI_PATH": "/"}
    return protocol.encode_request(env, json.dumps(config(node, mode="veth")).encode())


def test_three_hundred_connections_at_once(mortal: Node) -> None:
    mortal.start()
    with ExitStack() as stack:
        connections = connect(stack, mortal, 300)
        # The first connections occupy every worker until they have sent something.
        for each in reversed(connections):
            each.sendall(status_request(mortal))
        answers = [whole(each) for each in connections]
    assert answers == [protocol.encode_answer(0, b"")] * 300


def connect(stack: ExitStack, node: Node, count: int) -> list[socket.socket]:
    made = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(count)]
    for each in made:
        each.settimeout(30 * SLOWNESS)
        each.connect(str(node.socket))
    return made


def whole(connection: socket.socket) -> bytes:
    received = b""
    while chunk := connection.recv(4096):
        received += chunk
    return received


@pytest.mark.parametrize("what", ["nothing", "a part", "no request", "too much"])
def test_bad_peers_keep_no_worker(mortal: Node, what: str) -> None:
    mortal.start()
    request = status_request(mortal)
    sent = {"nothing": b"", "a part": request[:-1], "no request": b"GET / HTTP/1.1\r\n\r\n"}
    with ExitStack() as stack:
        for each in connect(stack, mortal, 40):
            each.sendall(sent.get(what, protocol.REQUEST_HEADER.pack(protocol.MAGIC, 2**31)))
            each.shutdown(socket.SHUT_WR)
    silent(mortal.call("STATUS", config(mortal)))


def test_shortage_of_descriptors_passes(mortal: Node) -> None:
    mortal.start()
    assert mortal.daemon
    pid = mortal.daemon.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    with ExitStack() as stack:
        connections = connect(stack, mortal, 40)
        for each in connections:
            each.sendall(status_request(mortal))
        end = time.monotonic() + 20
        while mortal.log.read_text().count("cannot accept") < 2 * 16:
            assert time.monotonic() < end
            os.kill(pid, 0)  # it lives
            time.sleep(0.01)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert [whole(each) for each in connections] == [protocol.encode_answer(0, b"")] * 40


def descriptors(node: Node) -> int:
    assert node.daemon
    return len(list(Path(f"/proc/{node.daemon.pid}/fd").iterdir()))


def test_no_descriptor_is_lost(mortal: Node, home: Path) -> None:
    mortal.start()
    counts: list[int] = []
    conf = config(mortal)
    for _ in range(3):
        for _ in range(16):
            run(mortal, "ADD", home, conf).expect()
            run(mortal, "ADD", home, conf)
            run(mortal, "CHECK", home, conf)
            silent(run(mortal, "DEL", home, conf))
            run(mortal, "ADD", "/proc/self/ns/mnt", conf)
        counts.append(descriptors(mortal))
    # Sockets that the reaper has yet to close come and go; one lost per call would make 16.
    assert counts[2] - counts[1] < 16, counts
