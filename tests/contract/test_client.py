"""The executed client as a black box, against a server that speaks cni.wire."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cni import wire
from cni.errors import BadEnvironment, CannotDecode, DeadlineExceeded, IOFailure, TryAgain

ROOT = Path(__file__).parents[2]
CONF = b'{"cniVersion": "1.0.0", "name": "n", "type": "vmlink"}'
DEL = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
VERSIONS = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source at hand, an installed one may be older."""
    target = tmp_path_factory.mktemp("bin")
    build = [sys.executable, "-W", "ignore", "setup.py", "-q", "build_scripts"]
    flags = os.environ.get("CFLAGS", "") + " -Werror"
    env = {**os.environ, "CFLAGS": flags}
    subprocess.run([*build, "--build-dir", str(target)], cwd=ROOT, env=env, check=True)
    return target / "vmlink"


class Node:
    """A directory with room for a socket and a queue, and the client started against it."""

    def __init__(self, client: Path, home: Path) -> None:
        self.client, self.home = client, home
        self.path = home / "s"
        self.queue = home / "queue"
        self.socket: socket.socket | None = None
        self.started: list[subprocess.Popen[bytes]] = []

    def listen(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        self.socket.bind(str(self.path))
        self.socket.listen()

    def accept(self) -> socket.socket:
        assert self.socket
        conn, _ = self.socket.accept()
        conn.settimeout(10)
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


@pytest.fixture
def node(client: Path) -> Iterator[Node]:
    home = Path(tempfile.mkdtemp(prefix="vml"))
    node = Node(client, home)
    yield node
    node.close()
    shutil.rmtree(home)


@pytest.fixture
def daemon(node: Node) -> Node:
    node.listen()
    return node


def encoded(env: dict[Any, Any]) -> dict[bytes, bytes]:
    return {os.fsencode(key): os.fsencode(value) for key, value in env.items()}


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    out, err = process.communicate(timeout=10)
    assert err == b""
    return process.returncode, out


def failure(outcome: tuple[int, bytes]) -> dict[str, Any]:
    code, out = outcome
    error: dict[str, Any] = json.loads(out)
    assert set(error) == {"cniVersion", "code", "msg", "details"}
    assert error["code"] == code != 0
    return error


def answer(node: Node, raw: bytes) -> wire.Frame:
    """Reads a request, then sends `raw` and hangs up."""
    with node.accept() as conn:
        frame, fd = wire.receive(conn)
        if fd is not None:
            os.close(fd)
        conn.sendall(raw)
    return frame


# What is answered without a daemon


def test_no_command_is_a_line_on_stderr(client: Path) -> None:
    done = subprocess.run([client], env={}, capture_output=True, timeout=5)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"vmlink: CNI plugin ")
    assert done.stderr.endswith(", ".join(VERSIONS).encode() + b"\n")


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b"", "1.1.0"),
        (CONF, "1.0.0"),
        (b'{"name":"n","cniVersion"\n:\t"0.4.0"}', "0.4.0"),
        (b'{"cniVersion"', "1.1.0"),
        (b'{"cniVersion":"0.4', "1.1.0"),
        (b'{"cniVersion":7}', "1.1.0"),
        (b'{"cniVersion""0.4.0"}', "1.1.0"),
        (b'{"cniVersion":"1\\"0"}', "1.1.0"),
        (b'{"cniVersion":"' + b"1" * 40 + b'"}', "1.1.0"),
    ],
)
def test_version(node: Node, stdin: bytes, version: str) -> None:
    code, out = node.run({"CNI_COMMAND": "VERSION"}, stdin)
    assert code == 0
    assert json.loads(out) == {"cniVersion": version, "supportedVersions": VERSIONS}


@pytest.mark.parametrize("value", ["0", "601", "-1", "5s", "x", "99999999999999999999"])
def test_bad_timeout(node: Node, value: str) -> None:
    error = node.fails({"CNI_COMMAND": "ADD", "VMLINK_TIMEOUT": value})
    assert error["code"] == 4
    assert "VMLINK_TIMEOUT" in error["msg"]


def test_socket_path_limit(daemon: Node) -> None:
    longest = str(daemon.home) + "/" * (107 - len(str(daemon.path))) + "/s"
    process = daemon.start({"CNI_COMMAND": "ADD", "VMLINK_SOCKET": longest})
    answer(daemon, wire.encode_answer(0, b"ok"))
    assert finish(process) == (0, b"ok")
    error = daemon.fails({"CNI_COMMAND": "ADD", "VMLINK_SOCKET": "/" + longest})
    assert (error["code"], error["cniVersion"]) == (4, "1.0.0")
    assert "VMLINK_SOCKET has 108 bytes" in error["msg"]
    assert "107" in error["msg"]


@pytest.mark.parametrize(
    ("verb", "code"),
    [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50), ("NOPE", 4), ("", 4), ("add", 4)],
)
@pytest.mark.parametrize("stale", [False, True])
def test_nobody_listens(node: Node, verb: str, code: int, stale: bool) -> None:
    if stale:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(node.path))
    error = node.fails({"CNI_COMMAND": verb})
    assert (error["code"], error["cniVersion"]) == (code, "1.0.0")
    assert not node.queue.exists()


def test_foreign_bytes_stay_valid_json(node: Node) -> None:
    path = os.fsencode(node.home) + b'/"q\\\x01\xff\xc3\xa9/s'
    error = node.fails({"CNI_COMMAND": "ADD", b"VMLINK_SOCKET": path})
    assert error["code"] == 11
    assert path.decode("latin-1") in error["msg"]


def test_unusable_socket_is_no_absence(node: Node) -> None:
    node.path.write_bytes(b"")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(node.home / "dgram"))
        error = node.fails({**DEL, "VMLINK_SOCKET": str(node.home / "dgram")})
    assert error["code"] == 5
    assert node.fails({**DEL, "VMLINK_SOCKET": str(node.path) + "/x"})["code"] == 5
    assert not node.queue.exists()


# The queue of DELs


def test_del_is_queued(node: Node) -> None:
    node.path = node.home / "deep" / "er" / "s"
    node.queue = node.path.parent / "queue"
    for n in range(2):
        assert node.run({**DEL, "CNI_ARGS": f"N={n}", "HOME": "/"}) == (0, b"")
    first, second = (wire.decode_payload(path.read_bytes()) for path in node.queued())
    assert first == wire.Frame({**DEL, "CNI_ARGS": "N=0"}, CONF)
    assert second.env["CNI_ARGS"] == "N=1"
    stamp, _, pid = node.queued()[0].stem.partition("-")
    assert len(stamp) == 19
    assert abs(int(stamp) / 1e9 - time.time()) < 60
    assert pid.isdigit()
    assert {path.name for path in node.queue.iterdir()} - {p.name for p in node.queued()} == {
        "lock"
    }
    for path, mode in [(node.path.parent, 0o700), (node.queue, 0o700), (node.queued()[0], 0o600)]:
        assert path.stat().st_mode & 0o777 == mode


def test_queue_of_a_relative_socket(node: Node) -> None:
    env = {**DEL, "VMLINK_SOCKET": "s"}
    via = ["env", "-C", str(node.home), "PATH=/usr/bin:/bin"]
    assert node.run(env, CONF, *via) == (0, b"")
    assert len(node.queued()) == 1


def test_queue_is_bounded(node: Node) -> None:
    node.queue.mkdir()
    for n in range(wire.QUEUE_MAX - 1):
        (node.queue / f"{n}.del").touch()
    (node.queue / "left.tmp").touch()
    assert node.run(DEL) == (0, b"")
    error = node.fails(DEL)
    assert error["code"] == 11
    assert "4096" in error["msg"]
    assert len(node.queued()) == wire.QUEUE_MAX


@pytest.mark.parametrize(
    ("change", "code", "names"),
    [
        ({"CNI_CONTAINERID": None}, 4, {"CNI_CONTAINERID"}),
        ({"CNI_IFNAME": None}, 4, {"CNI_IFNAME"}),
        ({"CNI_IFNAME": ""}, 4, {"CNI_IFNAME"}),
        ({"CNI_CONTAINERID": None, "CNI_IFNAME": None}, 4, {"CNI_CONTAINERID", "CNI_IFNAME"}),
        ({"CNI_CONTAINERID": ""}, 3, {"CNI_CONTAINERID"}),
    ],
)
def test_nameless_del_is_not_queued(
    node: Node, change: dict[str, str | None], code: int, names: set[str]
) -> None:
    error = node.fails({k: v for k, v in {**DEL, **change}.items() if v is not None})
    assert error["code"] == code
    assert {name for name in DEL if name in error["msg"]} == names
    assert not node.queue.exists()


def test_queue_that_cannot_be_made(node: Node) -> None:
    node.queue.write_bytes(b"a file")
    error = node.fails(DEL)
    assert error["code"] == 11
    assert "cannot be queued" in error["msg"]


def test_queue_on_a_full_disk_leaves_nothing(node: Node) -> None:
    assert (
        node.fails(DEL, CONF, "prlimit", "--fsize=10", "env", "--ignore-signal=XFSZ")["code"] == 11
    )
    assert [path.name for path in node.queue.iterdir()] == ["lock"]


def waits_for_lock(pid: int) -> bool:
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(line[1] == "->" and line[5] == str(pid) for line in lines)


def test_del_during_replay_is_delivered(node: Node) -> None:
    node.queue.mkdir()
    with open(node.queue / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = node.start(DEL)
        until(lambda: waits_for_lock(process.pid))
        node.listen()
        fcntl.flock(lock, fcntl.LOCK_UN)
        with node.accept() as conn:
            assert wire.receive(conn)[0].env == DEL
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            conn.sendall(wire.encode_answer(0, b""))
        assert finish(process) == (0, b"")
    assert node.queued() == []


def test_replay_that_hangs(node: Node) -> None:
    node.queue.mkdir()
    with open(node.queue / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert node.fails({**DEL, "VMLINK_TIMEOUT": "1"})["code"] == 11
    assert node.queued() == []


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# The request


def test_environment_and_stdin_arrive(daemon: Node) -> None:
    sent = {b"CNI_COMMAND": b"ADD", b"CNI_ARGS": b"a=b;c=\xff\xc3\xa9", b"CNI_EMPTY": b""}
    sent |= {b"TRACEPARENT": b"00-1", b"TRACESTATE": b"s", b"BAGGAGE": b"b"}
    stdin = b"{}\0\0bytes \xff"
    process = daemon.start({**sent, b"TRACEPARENTS": b"x", b"XCNI_A": b"x", b"CNI": b"x"}, stdin)
    frame = answer(daemon, wire.encode_answer(0, b"{}"))
    assert encoded(frame.env) == sent
    assert frame.stdin == stdin
    assert finish(process) == (0, b"{}")


def test_namespace_is_passed(daemon: Node) -> None:
    process = daemon.start({"CNI_COMMAND": "ADD", "CNI_NETNS": "/proc/self/ns/net"})
    with daemon.accept() as conn:
        _, fd = wire.receive(conn)
        conn.sendall(wire.encode_answer(0, b""))
    assert fd is not None
    assert os.fstat(fd).st_ino == os.stat("/proc/self/ns/net").st_ino
    assert not os.get_inheritable(fd)
    os.close(fd)
    assert finish(process) == (0, b"")


@pytest.mark.parametrize("netns", [None, "", "/nonexistent"])
def test_namespace_that_does_not_open(daemon: Node, netns: str | None) -> None:
    process = daemon.start({**DEL} if netns is None else {**DEL, "CNI_NETNS": netns})
    with daemon.accept() as conn:
        frame, fd = wire.receive(conn)
        conn.sendall(wire.encode_answer(0, b""))
    assert (frame.env.get("CNI_NETNS"), fd) == (netns, None)
    assert finish(process) == (0, b"")


def test_largest_stdin(daemon: Node) -> None:
    stdin = CONF + b" " * (wire.STDIN_MAX - len(CONF))
    process = daemon.start({"CNI_COMMAND": "ADD"}, stdin)
    assert answer(daemon, wire.encode_answer(0, b"")).stdin == stdin
    assert finish(process) == (0, b"")
    error = daemon.fails({"CNI_COMMAND": "ADD"}, stdin + b" ")
    assert (error["code"], error["cniVersion"]) == (6, "1.0.0")
    assert str(wire.STDIN_MAX) in error["msg"]


def test_largest_environment(daemon: Node) -> None:
    room = wire.ENV_MAX - len("CNI_COMMAND=ADD\0CNI_ARGS=\0\0")
    process = daemon.start({"CNI_COMMAND": "ADD", "CNI_ARGS": "a" * room}, b"s")
    frame = answer(daemon, wire.encode_answer(0, b""))
    assert (len(frame.env["CNI_ARGS"]), frame.stdin) == (room, b"s")
    assert finish(process) == (0, b"")
    error = daemon.fails({"CNI_COMMAND": "ADD", "CNI_ARGS": "a" * (room + 1)})
    assert error["code"] == 4
    assert str(wire.ENV_MAX) in error["msg"]


def test_stdin_without_blocking(daemon: Node) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    process = daemon.spawn({"CNI_COMMAND": "ADD"}, read)
    os.close(read)
    time.sleep(0.05)
    os.write(write, CONF)
    os.close(write)
    assert answer(daemon, wire.encode_answer(0, b"")).stdin == CONF
    assert finish(process) == (0, b"")


# The answer


@pytest.mark.parametrize(
    ("code", "status"), [(0, 0), (7, 7), (104, 104), (256, 255), (2**32 - 1, 255)]
)
def test_code_becomes_exit_status(daemon: Node, code: int, status: int) -> None:
    process = daemon.start({"CNI_COMMAND": "ADD"})
    answer(daemon, wire.encode_answer(code, b"body\0body"))
    assert finish(process) == (status, b"body\0body")


def test_answer_in_bytes_and_over_a_stop(daemon: Node) -> None:
    process = daemon.start({"CNI_COMMAND": "ADD"})
    with daemon.accept() as conn:
        wire.receive(conn)
        for n, byte in enumerate(wire.encode_answer(0, b'{"ips": []}')):
            if n == 5:
                process.send_signal(signal.SIGSTOP)
                process.send_signal(signal.SIGCONT)
            conn.sendall(bytes([byte]))
            time.sleep(0.002)
    assert finish(process) == (0, b'{"ips": []}')


def test_largest_answer(daemon: Node) -> None:
    body = os.urandom(1 << 10) * (wire.ANSWER_MAX >> 10)
    process = daemon.start({"CNI_COMMAND": "ADD"})
    answer(daemon, wire.encode_answer(0, body))
    assert finish(process) == (0, body)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        wire.encode_answer(0, b"body")[:5],
        wire.encode_answer(0, b"body")[:-1],
        b"HTTP/1.1 400 Bad Request\r\n",
        wire.ANSWER_HEADER.pack(wire.MAGIC, 0, wire.ANSWER_MAX + 1),
    ],
    ids=["nothing", "half a header", "half a body", "bad magic", "too large"],
)
def test_answer_that_is_none(daemon: Node, raw: bytes) -> None:
    process = daemon.start({"CNI_COMMAND": "ADD"})
    answer(daemon, raw)
    assert failure(finish(process))["code"] == 11


def test_peer_that_resets(daemon: Node) -> None:
    process = daemon.start(DEL, b" " * wire.STDIN_MAX)
    with daemon.accept() as conn:
        conn.recv(10)
    assert failure(finish(process))["code"] == 11
    assert not daemon.queue.exists()


def test_answer_before_the_request_was_read(daemon: Node) -> None:
    process = daemon.start({"CNI_COMMAND": "ADD"}, b" " * wire.STDIN_MAX)
    with daemon.accept() as conn:
        conn.sendall(wire.encode_answer(7, b"no"))
    assert finish(process) == (7, b"no")


def test_connection_stays_whole_until_the_answer(daemon: Node) -> None:
    process = daemon.start({"CNI_COMMAND": "ADD"})
    with daemon.accept() as conn:
        wire.receive(conn)
        conn.settimeout(0.1)
        with pytest.raises(TimeoutError):
            conn.recv(1)
        process.kill()
        assert conn.recv(1) == b""
    process.communicate(timeout=5)


def test_peer_that_hangs(daemon: Node) -> None:
    start = time.monotonic()
    process = daemon.start({"CNI_COMMAND": "ADD", "VMLINK_TIMEOUT": "1"})
    with daemon.accept() as conn:
        wire.receive(conn)
        conn.sendall(wire.encode_answer(0, b"body")[:-1])
        error = failure(finish(process))
    assert 0.9 < time.monotonic() - start < 3
    assert (error["code"], error["cniVersion"]) == (11, "1.0.0")
    assert str(daemon.path) in error["msg"]


@pytest.mark.parametrize("verb", ["ADD", "VERSION"])
def test_stdin_that_hangs(node: Node, verb: str) -> None:
    read, write = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    process = node.spawn({"CNI_COMMAND": verb, "VMLINK_TIMEOUT": "1"}, read)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    os.close(read)
    code, out = finish(process)
    os.close(write)
    assert failure((code, out))["code"] == 11
    assert b"stdin" in out


def test_result_that_cannot_be_printed_is_no_success(daemon: Node) -> None:
    with open("/dev/full", "wb") as full, open(os.devnull) as null:
        env = {"CNI_COMMAND": "ADD", "VMLINK_SOCKET": str(daemon.path)}
        process = subprocess.Popen([daemon.client], env=env, stdin=null, stdout=full)
        answer(daemon, wire.encode_answer(0, b"{}"))
        assert process.wait(5) == 5


def test_no_memory_for_the_answer(daemon: Node) -> None:
    process = daemon.start({"CNI_COMMAND": "ADD"}, CONF, "prlimit", f"--as={5 << 20}")
    answer(daemon, wire.ANSWER_HEADER.pack(wire.MAGIC, 0, wire.ANSWER_MAX))
    error = failure(finish(process))
    assert error["code"] == 11
    assert "memory" in error["msg"]


def test_no_memory_for_the_request(node: Node) -> None:
    little = ["prlimit", f"--as={3 << 19}"]
    if subprocess.run([*little, node.client], env={}, capture_output=True).returncode:
        pytest.skip("a dynamic client does not even start with so little")
    error = node.fails({"CNI_COMMAND": "ADD"}, CONF, *little)
    assert error["code"] == 11
    assert "memory" in error["msg"]


# cni.wire by itself


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(1)
    with ours, theirs:
        yield ours, theirs


Pair = tuple[socket.socket, socket.socket]


def test_surplus_descriptors_are_closed(pair: Pair) -> None:
    before = open_fds()
    request = wire.encode_request(DEL, CONF)
    socket.send_fds(pair[1], [request[:3]], [0] * 20)
    socket.send_fds(pair[1], [request[3:]], [0, 0])
    frame, fd = wire.receive(pair[0])
    assert frame == wire.Frame(DEL, CONF)
    assert fd is not None
    assert open_fds() == before + 1
    os.close(fd)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"GET / HTTP/1.1\r\n", CannotDecode),
        (wire.REQUEST_HEADER.pack(wire.MAGIC, wire.ENV_MAX + wire.STDIN_MAX + 1), CannotDecode),
        (wire.REQUEST_HEADER.pack(wire.MAGIC, 3) + b"A\0\0", CannotDecode),
        (b"V", IOFailure),
        (wire.encode_request(DEL, CONF)[:-1], IOFailure),
    ],
)
def test_bad_request_keeps_no_descriptor(pair: Pair, raw: bytes, kind: type[Exception]) -> None:
    before = open_fds()
    socket.send_fds(pair[1], [raw], [0])
    pair[1].shutdown(socket.SHUT_WR)
    with pytest.raises(kind):
        wire.receive(pair[0])
    assert open_fds() == before


def test_request_that_never_ends(pair: Pair) -> None:
    pair[0].settimeout(0.05)
    socket.send_fds(pair[1], [b"VML1"], [0])
    with pytest.raises(DeadlineExceeded):
        wire.receive(pair[0])


@pytest.mark.parametrize("env", [{}, DEL, {"CNI_ARGS": "\udcff=é"}])
@pytest.mark.parametrize("stdin", [b"", b"\0\0", CONF])
def test_payload_round_trip(env: dict[str, str], stdin: bytes) -> None:
    request = wire.encode_request({**env, "PATH": "/bin"}, stdin)
    assert wire.decode_payload(request[wire.REQUEST_HEADER.size :]) == wire.Frame(env, stdin)


@pytest.mark.parametrize(
    "payload",
    [b"", b"A=1", b"A=1\0", b"A\0\0", b"=1\0\0", b"A=" + b"1" * wire.ENV_MAX + b"\0\0"]
    + [prefix + bytes(wire.STDIN_MAX + 1) for prefix in (b"\0", b"A=1\0\0")],
)
def test_payload_that_is_none(payload: bytes) -> None:
    with pytest.raises(CannotDecode):
        wire.decode_payload(payload)


def test_first_of_two_counts() -> None:
    assert wire.decode_payload(b"A=1\0A=2\0\0").env == {"A": "1"}


def test_encoding_has_the_limits_of_the_client() -> None:
    with pytest.raises(BadEnvironment, match="65536"):
        wire.encode_request({"CNI_A": "a" * wire.ENV_MAX}, b"")
    with pytest.raises(BadEnvironment, match="NUL"):
        wire.encode_request({"CNI_A": "a\0"}, b"")
    with pytest.raises(CannotDecode, match="1048576"):
        wire.encode_request({}, bytes(wire.STDIN_MAX + 1))
    with pytest.raises(IOFailure, match="4194304"):
        wire.encode_answer(0, bytes(wire.ANSWER_MAX + 1))


def test_call(daemon: Node) -> None:
    stdin = bytes(wire.STDIN_MAX)
    with ThreadPoolExecutor() as pool, open("/proc/self/ns/net") as netns:
        reply = pool.submit(wire.call, str(daemon.path), DEL, stdin, netns.fileno())
        with daemon.accept() as conn:
            frame, fd = wire.receive(conn)
            assert fd is not None
            assert os.path.sameopenfile(fd, netns.fileno())
            os.close(fd)
            conn.sendall(wire.encode_answer(3, b"body"))
        assert reply.result(5) == (3, b"body")
    assert frame == wire.Frame(DEL, stdin)


def test_call_without_an_answer(node: Node) -> None:
    with pytest.raises(TryAgain, match="does not listen"):
        wire.call(str(node.path), DEL, b"")
    node.listen()
    with pytest.raises(DeadlineExceeded):
        wire.call(str(node.path), DEL, b"", timeout=0.05)
