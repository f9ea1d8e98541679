"""The client as a black box: its own answers, the request it sends, the answer it relays."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from bench.testbed.slowness import SLOWNESS
from cni.spec import protocol
from tests.contract.fakedaemon import CONF, DEL, FakeDaemon, answer, encoded, failure, finish

VERSIONS = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]


# What the client answers without a daemon


def test_no_command_is_a_line_on_stderr(client: Path) -> None:
    done = subprocess.run([client], env={}, capture_output=True, timeout=5 * SLOWNESS)
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
def test_version(absent: FakeDaemon, stdin: bytes, version: str) -> None:
    code, out = absent.run({"CNI_COMMAND": "VERSION"}, stdin)
    assert code == 0
    assert json.loads(out) == {"cniVersion": version, "supportedVersions": VERSIONS}


@pytest.mark.parametrize("value", ["0", "601", "-1", "5s", "x", "99999999999999999999"])
def test_bad_timeout(absent: FakeDaemon, value: str) -> None:
    error = absent.fails({"CNI_COMMAND": "ADD", "VMLINK_TIMEOUT": value})
    assert error["code"] == 4
    assert "VMLINK_TIMEOUT" in error["msg"]


def test_socket_path_limit(daemon: FakeDaemon) -> None:
    longest = str(daemon.home) + "/" * (107 - len(str(daemon.path))) + "/s"
    process = daemon.start({"CNI_COMMAND": "ADD", "VMLINK_SOCKET": longest})
    answer(daemon, protocol.encode_answer(0, b"ok"))
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
def test_nobody_listens(absent: FakeDaemon, verb: str, code: int, stale: bool) -> None:
    if stale:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(absent.path))
    error = absent.fails({"CNI_COMMAND": verb})
    assert (error["code"], error["cniVersion"]) == (code, "1.0.0")
    assert not absent.queue.exists()


def test_foreign_bytes_stay_valid_json(absent: FakeDaemon) -> None:
    path = os.fsencode(absent.home) + b'/"q\\\x01\xff\xc3\xa9/s'
    error = absent.fails({"CNI_COMMAND": "ADD", b"VMLINK_SOCKET": path})
    assert error["code"] == 11
    assert path.decode("latin-1") in error["msg"]


def test_unusable_socket_is_no_absence(absent: FakeDaemon) -> None:
    absent.path.write_bytes(b"")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(absent.home / "dgram"))
        error = absent.fails({**DEL, "VMLINK_SOCKET": str(absent.home / "dgram")})
    assert error["code"] == 5
    assert absent.fails({**DEL, "VMLINK_SOCKET": str(absent.path) + "/x"})["code"] == 5
    assert not absent.queue.exists()


# The request


def test_environment_and_stdin_arrive(daemon: FakeDaemon) -> None:
    sent = {b"CNI_COMMAND": b"ADD", b"CNI_ARGS": b"a=b;c=\xff\xc3\xa9", b"CNI_EMPTY": b""}
    sent |= {b"TRACEPARENT": b"00-1", b"TRACESTATE": b"s", b"BAGGAGE": b"b"}
    stdin = b"{}\0\0bytes \xff"
    process = daemon.start({**sent, b"TRACEPARENTS": b"x", b"XCNI_A": b"x", b"CNI": b"x"}, stdin)
    frame = answer(daemon, protocol.encode_answer(0, b"{}"))
    assert encoded(frame.env) == sent
    assert frame.stdin == stdin
    assert finish(process) == (0, b"{}")


def test_namespace_is_passed(daemon: FakeDaemon) -> None:
    process = daemon.start({"CNI_COMMAND": "ADD", "CNI_NETNS": "/proc/self/ns/net"})
    with daemon.accept() as conn:
        _, fd = protocol.receive(conn)
        conn.sendall(protocol.encode_answer(0, b""))
    assert fd is not None
    assert os.fstat(fd).st_ino == Path("/proc/self/ns/net").stat().st_ino
    assert not os.get_inheritable(fd)
    os.close(fd)
    assert finish(process) == (0, b"")


@pytest.mark.parametrize("netns", [None, "", "/nonexistent"])
def test_namespace_that_does_not_open(daemon: FakeDaemon, netns: str | None) -> None:
    process = daemon.start({**DEL} if netns is None else {**DEL, "CNI_NETNS": netns})
    with daemon.accept() as conn:
        frame, fd = protocol.receive(conn)
        conn.sendall(protocol.encode_answer(0, b""))
    assert (frame.env.get("CNI_NETNS"), fd) == (netns, None)
    assert finish(process) == (0, b"")


def test_largest_stdin(daemon: FakeDaemon) -> None:
    stdin = CONF + b" " * (protocol.STDIN_MAX - len(CONF))
    process = daemon.start({"CNI_COMMAND": "ADD"}, stdin)
    assert answer(daemon, protocol.encode_answer(0, b"")).stdin == stdin
    assert finish(process) == (0, b"")
    error = daemon.fails({"CNI_COMMAND": "ADD"}, stdin + b" ")
    assert (error["code"], error["cniVersion"]) == (6, "1.0.0")
    assert str(protocol.STDIN_MAX) in error["msg"]
    process = daemon.start(DEL, stdin + b" ")
    assert answer(daemon, protocol.encode_answer(0, b"")).stdin == b""
    assert finish(process) == (0, b"")


def test_largest_environment(daemon: FakeDaemon) -> None:
    room = protocol.ENV_MAX - len("CNI_COMMAND=ADD\0CNI_ARGS=\0\0")
    process = daemon.start({"CNI_COMMAND": "ADD", "CNI_ARGS": "a" * room}, b"s")
    frame = answer(daemon, protocol.encode_answer(0, b""))
    assert (len(frame.env["CNI_ARGS"]), frame.stdin) == (room, b"s")
    assert finish(process) == (0, b"")
    error = daemon.fails({"CNI_COMMAND": "ADD", "CNI_ARGS": "a" * (room + 1)})
    assert error["code"] == 4
    assert str(protocol.ENV_MAX) in error["msg"]


def test_stdin_without_blocking(daemon: FakeDaemon) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    process = daemon.spawn({"CNI_COMMAND": "ADD"}, read)
    os.close(read)
    time.sleep(0.05)
    os.write(write, CONF)
    os.close(write)
    assert answer(daemon, protocol.encode_answer(0, b"")).stdin == CONF
    assert finish(process) == (0, b"")


# The answer


@pytest.mark.parametrize(
    ("code", "status"), [(0, 0), (7, 7), (104, 104), (256, 255), (2**32 - 1, 255)]
)
def test_code_becomes_exit_status(daemon: FakeDaemon, code: int, status: int) -> None:
    process = daemon.start({"CNI_COMMAND": "ADD"})
    answer(daemon, protocol.encode_answer(code, b"body\0body"))
    assert finish(process) == (status, b"body\0body")


def test_answer_in_bytes_and_over_a_stop(daemon: FakeDaemon) -> None:
    process = daemon.start({"CNI_COMMAND": "ADD"})
    with daemon.accept() as conn:
        protocol.receive(conn)
        for n, byte in enumerate(protocol.encode_answer(0, b'{"ips": []}')):
            if n == 5:
                process.send_signal(signal.SIGSTOP)
                process.send_signal(signal.SIGCONT)
            conn.sendall(bytes([byte]))
            time.sleep(0.002)
    assert finish(process) == (0, b'{"ips": []}')


def test_largest_answer(daemon: FakeDaemon) -> None:
    body = os.urandom(1 << 10) * (protocol.ANSWER_MAX >> 10)
    process = daemon.start({"CNI_COMMAND": "ADD"})
    answer(daemon, protocol.encode_answer(0, body))
    assert finish(process) == (0, body)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        protocol.encode_answer(0, b"body")[:5],
        protocol.encode_answer(0, b"body")[:-1],
        b"HTTP/1.1 400 Bad Request\r\n",
        protocol.ANSWER_HEADER.pack(protocol.MAGIC, 0, protocol.ANSWER_MAX + 1),
    ],
    ids=["nothing", "half a header", "half a body", "bad magic", "too large"],
)
def test_answer_that_is_none(daemon: FakeDaemon, raw: bytes) -> None:
    process = daemon.start({"CNI_COMMAND": "ADD"})
    answer(daemon, raw)
    assert failure(finish(process))["code"] == 11


def test_peer_that_resets(daemon: FakeDaemon) -> None:
    process = daemon.start(DEL, b" " * protocol.STDIN_MAX)
    with daemon.accept() as conn:
        conn.recv(10)
    assert failure(finish(process))["code"] == 11
    assert not daemon.queue.exists()


def test_answer_before_the_request_was_read(daemon: FakeDaemon) -> None:
    process = daemon.start({"CNI_COMMAND": "ADD"}, b" " * protocol.STDIN_MAX)
    with daemon.accept() as conn:
        conn.sendall(protocol.encode_answer(7, b"no"))
    assert finish(process) == (7, b"no")


def test_connection_stays_whole_until_the_answer(daemon: FakeDaemon) -> None:
    process = daemon.start({"CNI_COMMAND": "ADD"})
    with daemon.accept() as conn:
        protocol.receive(conn)
        conn.settimeout(0.1)
        with pytest.raises(TimeoutError):
            conn.recv(1)
        process.kill()
        assert conn.recv(1) == b""
    process.communicate(timeout=5 * SLOWNESS)


def test_peer_that_hangs(daemon: FakeDaemon) -> None:
    start = time.monotonic()
    process = daemon.start({"CNI_COMMAND": "ADD", "VMLINK_TIMEOUT": "1"})
    with daemon.accept() as conn:
        protocol.receive(conn)
        conn.sendall(protocol.encode_answer(0, b"body")[:-1])
        error = failure(finish(process))
    assert 0.9 < time.monotonic() - start < 3
    assert (error["code"], error["cniVersion"]) == (11, "1.0.0")
    assert str(daemon.path) in error["msg"]


@pytest.mark.parametrize("verb", ["ADD", "VERSION"])
def test_stdin_that_hangs(absent: FakeDaemon, verb: str) -> None:
    read, write = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    process = absent.spawn({"CNI_COMMAND": verb, "VMLINK_TIMEOUT": "1"}, read)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    os.close(read)
    code, out = finish(process)
    os.close(write)
    assert failure((code, out))["code"] == 11
    assert b"stdin" in out


def test_result_that_cannot_be_printed_is_no_success(daemon: FakeDaemon) -> None:
    with Path("/dev/full").open("wb") as full, Path(os.devnull).open() as null:
        env = {"CNI_COMMAND": "ADD", "VMLINK_SOCKET": str(daemon.path)}
        process = subprocess.Popen([daemon.client], env=env, stdin=null, stdout=full)
        answer(daemon, protocol.encode_answer(0, b"{}"))
        assert process.wait(5 * SLOWNESS) == 5


def test_no_memory_for_the_answer(daemon: FakeDaemon) -> None:
    process = daemon.start({"CNI_COMMAND": "ADD"}, CONF, "prlimit", f"--as={5 << 20}")
    answer(daemon, protocol.ANSWER_HEADER.pack(protocol.MAGIC, 0, protocol.ANSWER_MAX))
    error = failure(finish(process))
    assert error["code"] == 11
    assert "memory" in error["msg"]


def test_no_memory_for_the_request(absent: FakeDaemon) -> None:
    little = ["prlimit", f"--as={1 << 20}"]
    if subprocess.run([*little, absent.client], env={}, capture_output=True).returncode:
        pytest.skip("a dynamically linked client does not even start with so little memory")
    error = absent.fails({"CNI_COMMAND": "ADD"}, CONF, *little)
    assert error["code"] == 11
    assert "memory" in error["msg"]
