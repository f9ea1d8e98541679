"""The life of vmlinkd: start, queue, load, end. Each test has a node of its own."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import BIN, CLIENT, Answer, Node
from cni.spec import protocol
from tests.contract.cnikit import config, fails, links, run, script, silent, variables

GOOD = 'echo \'{"cniVersion":"1.0.0","ips":[{"address":"10.9.2.2/24"}]}\''


@pytest.fixture
def mortal() -> Iterator[Node]:
    """A node whose vmlinkd the test starts and ends; it must be as bare as before at the end."""
    with Node() as node:
        node.run(["ip", "link", "add", "br0", "type", "bridge"])
        before = node.contents()
        yield node
        assert node.contents() == before


@pytest.fixture
def home(mortal: Node) -> Path:
    """A pod's namespace, which goes with the node."""
    return mortal.pod()


@contextmanager
def under_way(node: Node, pod: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An ADD whose IPAM plugin waits until the end of the block."""
    directory = node.lab.dir / "plugins"
    started, go = directory / "started", directory / "go"
    script(
        directory,
        "waits",
        f"[ $CNI_COMMAND = ADD ] || exit 0\necho >{started}; read x <{go}\n{GOOD}",
    )
    for fifo in (started, go):
        os.mkfifo(fifo)
    conf = config(node, cniVersion="1.0.0", ipam={"type": "waits"})
    env = variables("ADD", pod, CNI_PATH=str(directory), VMLINK_SOCKET=str(node.socket))
    with open(node.lab.dir / "answer", "wb") as answer:
        client = subprocess.Popen([CLIENT], env=env, stdin=subprocess.PIPE, stdout=answer)
    try:
        assert client.stdin
        client.stdin.write(json.dumps(conf).encode())
        client.stdin.close()
        started.read_text()
        yield client
        go.write_text("\n")
        client.wait(20)
    finally:
        client.kill()
        client.wait()


def delete(node: Node, pod: Path) -> Answer:
    conf = config(node, cniVersion="1.0.0", ipam={"type": "waits"})
    return run(node, "DEL", pod, conf, CNI_PATH=str(node.lab.dir / "plugins"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_end_finishes_what_is_under_way(mortal: Node, home: Path, number: int) -> None:
    mortal.start()
    daemon = mortal.daemon
    assert daemon
    with under_way(mortal, home) as client:
        daemon.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.wait(0.2)
        assert client.poll() is None
    assert client.returncode == 0
    out = (mortal.lab.dir / "answer").read_text()
    assert json.loads(out)["ips"][0]["address"] == "10.9.2.2/24"
    assert daemon.wait(20) == 0
    mortal.daemon = None
    assert not mortal.socket.exists()
    assert "eth0" in links(home)
    mortal.start()
    silent(delete(mortal, home))
    assert links(home) == {"lo"}


def test_client_that_is_killed_while_the_plugin_works(mortal: Node, home: Path) -> None:
    mortal.start()
    with under_way(mortal, home) as client:
        client.kill()
        client.wait()
    assert mortal.stop() == 0  # which waits for the undoing
    assert links(home) == {"lo"}


def test_restart_touches_nothing(mortal: Node, home: Path) -> None:
    mortal.start()
    conf = config(mortal)
    result = run(mortal, "ADD", home, conf).expect()
    before = seen(mortal, home)
    for number, status in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
        assert mortal.stop(number) == status
        mortal.start()
        assert seen(mortal, home) == before
        silent(run(mortal, "CHECK", home, {**conf, "prevResult": result}))
    silent(run(mortal, "DEL", home, conf))


def seen(node: Node, pod: Path) -> list[str]:
    """Links by index and name, addresses, routes and filters; a link's state may settle later."""
    found = [line.split("@")[0].split(": <")[0] for line in said(node, pod, "ip -oneline link")]
    for command in ("ip -oneline -4 address", "ip route", "tc filter show dev eth0 ingress"):
        found += said(node, pod, command)
    return found


def said(node: Node, pod: Path, command: str) -> list[str]:
    return node.run(command.split(), pod).stdout.splitlines()


def test_second_vmlinkd_is_refused(mortal: Node) -> None:
    mortal.start()
    command = [str(BIN / "vmlinkd"), "--run-dir", str(mortal.run_dir)]
    second = mortal.run(command, check=False)
    assert second.returncode == 1
    assert str(mortal.run_dir) in second.stderr
    silent(mortal.call("STATUS", config(mortal)))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ("workers: 0", "workers"),
        ("bogus: 1", "bogus"),
        ("[1]", "keys"),
        ("deadline: x", "deadline"),
    ],
)
def test_bad_settings(mortal: Node, tmp_path: Path, settings: str, word: str) -> None:
    file = tmp_path / "vmlinkd.yaml"
    file.write_text(settings)
    command = [str(BIN / "vmlinkd"), "--run-dir", str(mortal.run_dir), "--config", str(file)]
    done = mortal.run(command, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert str(file) in done.stderr
    assert word in done.stderr


# The queue


def test_del_is_queued_and_replayed(mortal: Node, home: Path) -> None:
    mortal.start()
    conf = config(mortal)
    run(mortal, "ADD", home, conf).expect()
    mortal.stop()
    silent(run(mortal, "DEL", home, conf))
    assert len(list((mortal.run_dir / "queue").glob("*.del"))) == 1
    mortal.start()
    # It was replayed before anything was served: nothing has been asked since.
    assert links(home) == {"lo"}
    assert not list((mortal.run_dir / "queue").glob("*.del"))
    run(mortal, "ADD", home, conf).expect()
    silent(run(mortal, "DEL", home, conf))


def test_other_verbs_are_not_queued(mortal: Node, home: Path) -> None:
    for verb, code in (("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)):
        fails(run(mortal, verb, home, config(mortal)), code, str(mortal.socket))


def test_replay_survives_what_it_cannot_serve(mortal: Node, home: Path) -> None:
    mortal.start()
    conf = config(mortal)
    run(mortal, "ADD", home, conf).expect()
    mortal.stop()
    fifo = mortal.lab.dir / "fifo"
    os.mkfifo(fifo)
    silent(run(mortal, "DEL", fifo, conf, CNI_CONTAINERID="c2"))
    silent(run(mortal, "DEL", home, {"name": "without a version"}, CNI_CONTAINERID="c3"))
    (mortal.run_dir / "queue" / "0-1.del").write_bytes(b"no request")
    (mortal.run_dir / "queue" / "1-1.tmp").write_bytes(b"cut sho")
    silent(run(mortal, "DEL", home, conf))
    mortal.start()
    assert links(home) == {"lo"}
    assert [p.name for p in (mortal.run_dir / "queue").iterdir()] == ["lock"]


# The socket


def test_socket_is_for_its_owner(mortal: Node) -> None:
    mortal.start()
    mode = mortal.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert stat.S_IMODE(mortal.run_dir.stat().st_mode) == 0o700


STRANGER = """
import socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.settimeout(20)
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
        # The first ones hold every worker until they have sent something.
        for each in reversed(connections):
            each.sendall(status_request(mortal))
        answers = [whole(each) for each in connections]
    assert answers == [protocol.encode_answer(0, b"")] * 300


def connect(stack: ExitStack, node: Node, count: int) -> list[socket.socket]:
    made = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(count)]
    for each in made:
        each.settimeout(30)
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
            assert mortal.daemon.poll() is None
            time.sleep(0.01)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert [whole(each) for each in connections] == [protocol.encode_answer(0, b"")] * 40


def descriptors(node: Node) -> int:
    assert node.daemon
    return len(os.listdir(f"/proc/{node.daemon.pid}/fd"))


def test_no_descriptor_is_lost(mortal: Node, home: Path) -> None:
    mortal.start()
    counts: list[int] = []
    conf: dict[str, Any] = config(mortal)
    for _ in range(3):
        for _ in range(16):
            run(mortal, "ADD", home, conf).expect()
            run(mortal, "ADD", home, conf)
            run(mortal, "CHECK", home, conf)
            silent(run(mortal, "DEL", home, conf))
            run(mortal, "ADD", "/proc/self/ns/mnt", conf)
        counts.append(descriptors(mortal))
    # Sockets that the reaper still closes come and go; one lost in each round would make 16.
    assert counts[2] - counts[1] < 16, counts


def test_run_directory_that_others_can_write_is_refused(mortal: Node) -> None:
    mortal.run_dir.chmod(0o777)
    command = [str(BIN / "vmlinkd"), "--run-dir", str(mortal.run_dir)]
    done = mortal.run(command, check=False)
    mortal.run_dir.chmod(0o700)
    assert done.returncode == 1
    assert f"{mortal.run_dir}: others may write there" in done.stderr
