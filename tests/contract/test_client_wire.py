"""cni.spec.protocol on its own: it is the reference for the client."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cni.errors import BadEnvironment, CannotDecode, DeadlineExceeded, IOFailure, TryAgain
from cni.spec import protocol
from tests.contract.fakedaemon import CONF, DEL, FakeDaemon


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(1)
    with ours, theirs:
        yield ours, theirs


Pair = tuple[socket.socket, socket.socket]


def test_surplus_descriptors_are_closed(pair: Pair) -> None:
    before = open_fds()
    request = protocol.encode_request(DEL, CONF)
    socket.send_fds(pair[1], [request[:3]], [0] * 20)
    socket.send_fds(pair[1], [request[3:]], [0, 0])
    frame, fd = protocol.receive(pair[0])
    assert frame == protocol.Frame(DEL, CONF)
    assert fd is not None
    assert open_fds() == before + 1
    os.close(fd)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"GET / HTTP/1.1\r\n", CannotDecode),
        (
            protocol.REQUEST_HEADER.pack(protocol.MAGIC, protocol.ENV_MAX + protocol.STDIN_MAX + 1),
            CannotDecode,
        ),
        (protocol.REQUEST_HEADER.pack(protocol.MAGIC, 3) + b"A\0\0", CannotDecode),
        (b"V", IOFailure),
        (protocol.encode_request(DEL, CONF)[:-1], IOFailure),
    ],
)
def test_bad_request_keeps_no_descriptor(pair: Pair, raw: bytes, kind: type[Exception]) -> None:
    before = open_fds()
    socket.send_fds(pair[1], [raw], [0])
    pair[1].shutdown(socket.SHUT_WR)
    with pytest.raises(kind):
        protocol.receive(pair[0])
    assert open_fds() == before


def test_request_that_never_ends(pair: Pair) -> None:
    pair[0].settimeout(0.05)
    socket.send_fds(pair[1], [b"VML1"], [0])
    with pytest.raises(DeadlineExceeded):
        protocol.receive(pair[0])


@pytest.mark.parametrize("env", [{}, DEL, {"CNI_ARGS": "\udcff=é"}])
@pytest.mark.parametrize("stdin", [b"", b"\0\0", CONF])
def test_payload_round_trip(env: dict[str, str], stdin: bytes) -> None:
    request = protocol.encode_request({**env, "PATH": "/bin"}, stdin)
    assert protocol.decode_payload(request[protocol.REQUEST_HEADER.size :]) == protocol.Frame(
        env, stdin
    )


@pytest.mark.parametrize(
    "payload",
    [b"", b"A=1", b"A=1\0", b"A\0\0", b"=1\0\0", b"A=" + b"1" * protocol.ENV_MAX + b"\0\0"]
    + [prefix + bytes(protocol.STDIN_MAX + 1) for prefix in (b"\0", b"A=1\0\0")],
    ids=lambda payload: f"{len(payload)} bytes",  # pytest puts the id into an environment variable
)
def test_payload_that_is_none(payload: bytes) -> None:
    with pytest.raises(CannotDecode):
        protocol.decode_payload(payload)


def test_first_of_two_counts() -> None:
    assert protocol.decode_payload(b"A=1\0A=2\0\0").env == {"A": "1"}


def test_encoding_has_the_limits_of_the_client() -> None:
    with pytest.raises(BadEnvironment, match="65536"):
        protocol.encode_request({"CNI_A": "a" * protocol.ENV_MAX}, b"")
    with pytest.raises(BadEnvironment, match="NUL"):
        protocol.encode_request({"CNI_A": "a\0"}, b"")
    with pytest.raises(CannotDecode, match="1048576"):
        protocol.encode_request({}, bytes(protocol.STDIN_MAX + 1))
    with pytest.raises(IOFailure, match="4194304"):
        protocol.encode_answer(0, bytes(protocol.ANSWER_MAX + 1))


def test_call(daemon: FakeDaemon) -> None:
    stdin = bytes(protocol.STDIN_MAX)
    with ThreadPoolExecutor() as pool, Path("/proc/self/ns/net").open() as netns:
        reply = pool.submit(protocol.call, str(daemon.path), DEL, stdin, netns.fileno())
        with daemon.accept() as conn:
            frame, fd = protocol.receive(conn)
            assert fd is not None
            assert os.path.sameopenfile(fd, netns.fileno())
            os.close(fd)
            conn.sendall(protocol.encode_answer(3, b"body"))
        assert reply.result(5) == (3, b"body")
    assert frame == protocol.Frame(DEL, stdin)


def test_call_whose_answer_is_there_before_it_looks(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(conn: socket.socket, data: list[bytes], fds: list[int]) -> int:
        """Return only when the daemon has answered and hung up."""
        sent = real(conn, data, fds)
        with daemon.accept() as theirs:
            protocol.receive(theirs)
            theirs.sendall(protocol.encode_answer(7, b"no"))
        return sent

    real = socket.send_fds
    monkeypatch.setattr(socket, "send_fds", send)
    assert protocol.call(str(daemon.path), DEL, CONF) == (7, b"no")


def test_call_without_an_answer(absent: FakeDaemon) -> None:
    with pytest.raises(TryAgain, match="does not listen"):
        protocol.call(str(absent.path), DEL, b"")
    absent.listen()
    with pytest.raises(DeadlineExceeded):
        protocol.call(str(absent.path), DEL, b"", timeout=0.05)
