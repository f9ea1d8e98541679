"""The framing between the executed CNI client (cni/plugins/vmlink.c) and vmlinkd.

A connection is a SOCK_STREAM unix socket and carries one request and one answer. Integers are
unsigned, 32 bits, little endian.

    request   "VML1"  length          payload
    answer    "VML1"  exit code       length   body

payload   NUL-terminated `KEY=value` strings, an empty string, then stdin verbatim. Only CNI_*,
          TRACEPARENT, TRACESTATE and BAGGAGE are sent. When a name occurs twice the first counts,
          as for getenv(3).
rights    The first sendmsg carries the opened CNI_NETNS (SCM_RIGHTS), if it could be opened.
body      What the client prints on stdout; empty where CNI wants no output.
end       The client keeps its side open until it has the answer. An end of file before that means
          that it went away.
limits    64 KiB for the environment with its end, 1 MiB for stdin (a DEL with more is sent without
          any), 4 MiB for the body.

The queue: a DEL while nobody listens succeeds and becomes a file in `queue/` next to the socket.
Its content is the payload (no header, no descriptor), its name
`<ns since 1970, 19 digits>-<pid>.del`, so names sort by age. The client holds a shared flock on
`queue/lock` from its last try to connect until the file has its name. The daemon holds it
exclusively from before the replay until after listen(): no DEL is lost in between. Whatever ends in
`.tmp` while the daemon holds the lock was left by a client that was killed. A client refuses with
code 11 when it counts 4096 files; clients that count at the same moment can exceed that by their
number.
"""

from __future__ import annotations

import os
import socket
import struct
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from cni.errors import BadEnvironment, CannotDecode, DeadlineExceeded, IOFailure, TryAgain

MAGIC = b"VML1"
REQUEST_HEADER = struct.Struct("<4sI")
ANSWER_HEADER = struct.Struct("<4sII")
ENV_MAX = 64 << 10
STDIN_MAX = 1 << 20
ANSWER_MAX = 4 << 20
QUEUE_MAX = 4096
TRACING = frozenset({"TRACEPARENT", "TRACESTATE", "BAGGAGE"})
_FIRST_READ = 4096  # most requests fit, and are read by one system call
# Room for one descriptor: the kernel closes further ones. socket.recv_fds() ignores its flags in
# Python 3.11, so the descriptor would not be close-on-exec.
_RIGHTS_ROOM = socket.CMSG_SPACE(4)


@dataclass(frozen=True)
class Frame:
    """One request as the client sent it.

    `env` is decoded like `os.environ`, by surrogateescape; `stdin` is the network configuration.
    """

    env: dict[str, str]
    stdin: bytes


def encode_request(env: Mapping[str, str], stdin: bytes) -> bytes:
    """Encode a request with its header.

    Raises BadEnvironment or CannotDecode where the C client refuses it.
    """
    sent = [f"{k}={v}" for k, v in env.items() if k.startswith("CNI_") or k in TRACING]
    if any("\0" in item for item in sent):
        raise BadEnvironment("a CNI_* variable contains NUL; remove it")
    head = b"".join(item.encode("utf-8", "surrogateescape") + b"\0" for item in sent) + b"\0"
    if len(head) > ENV_MAX:
        raise BadEnvironment(f"the CNI_* variables have more than {ENV_MAX} bytes; shorten them")
    if env.get("CNI_COMMAND") == "DEL" and len(stdin) > STDIN_MAX:
        stdin = b""  # no ADD had one that is too large
    _bounded(stdin)
    return REQUEST_HEADER.pack(MAGIC, len(head) + len(stdin)) + head + stdin


def decode_payload(payload: bytes) -> Frame:
    """Decode the payload of a request or the content of a queued DEL. Raises CannotDecode."""
    if payload[:1] == b"\0":
        return Frame({}, _bounded(payload[1:]))
    end = payload.find(b"\0\0", 0, ENV_MAX)
    if end < 0:
        raise CannotDecode(f"the environment does not end within {ENV_MAX} bytes")
    env: dict[str, str] = {}
    for item in payload[:end].decode("utf-8", "surrogateescape").split("\0"):
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise CannotDecode(f"the environment has {item[:64]!r}, expected KEY=value")
        env.setdefault(key, value)
    return Frame(env, _bounded(payload[end + 2 :]))


def encode_answer(code: int, body: bytes) -> bytes:
    """Encode an answer with its header; `code` becomes the client's exit status.

    Raises IOFailure when the body is too large.
    """
    if len(body) > ANSWER_MAX:
        raise IOFailure(f"the answer has {len(body)} bytes, at most {ANSWER_MAX} can be sent")
    return ANSWER_HEADER.pack(MAGIC, code, len(body)) + body


def receive(conn: socket.socket) -> tuple[Frame, int | None]:
    """Read one request and its descriptor (close-on-exec), which the caller then owns.

    The descriptor is that of CNI_NETNS, None if the client sent none. Each wait ends after the
    timeout of `conn`. Raises DeadlineExceeded after that, IOFailure when the request is cut short,
    CannotDecode when it is malformed or too large.
    """
    fds: list[int] = []
    try:
        with _translated("the request"):
            start, rights, _, _ = conn.recvmsg(_FIRST_READ, _RIGHTS_ROOM, socket.MSG_CMSG_CLOEXEC)
            fds = _descriptors(rights)
            start += _exactly(conn, max(REQUEST_HEADER.size - len(start), 0))
            magic, size = REQUEST_HEADER.unpack_from(start)
            if magic != MAGIC:
                raise CannotDecode(f"the request begins with {magic!r}, expected {MAGIC!r}")
            if size > ENV_MAX + STDIN_MAX:
                raise CannotDecode(
                    f"the request has {size} bytes, at most {ENV_MAX + STDIN_MAX} are read"
                )
            payload = start[REQUEST_HEADER.size :][:size]
            frame = decode_payload(payload + _exactly(conn, size - len(payload)))
        return frame, fds.pop(0) if fds else None
    finally:
        for fd in fds:
            os.close(fd)


def call(
    path: str,
    env: Mapping[str, str],
    stdin: bytes,
    netns_fd: int | None = None,
    timeout: float = 60,
) -> tuple[int, bytes]:
    """Do what the C client does: send a request to the socket `path`, return exit code and body.

    `timeout` is in seconds, for each wait. Raises TryAgain when vmlinkd does not listen, otherwise
    as `encode_request` and `receive`.
    """
    request = encode_request(env, stdin)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as conn, _translated("the answer"):
        conn.settimeout(timeout)
        try:
            conn.connect(path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise TryAgain(f"vmlinkd does not listen at {path}; start vmlinkd.socket") from error
        sent = socket.send_fds(conn, [request], [] if netns_fd is None else [netns_fd])
        if sent < len(request):  # sendall(b"") would fail where a refusal has closed the socket
            conn.sendall(request[sent:])
        magic, code, size = ANSWER_HEADER.unpack(_exactly(conn, ANSWER_HEADER.size))
        if magic != MAGIC or size > ANSWER_MAX:
            raise CannotDecode(f"the answer begins with {magic!r}, expected {MAGIC!r}")
        return code, _exactly(conn, size)


def _bounded(stdin: bytes) -> bytes:
    if len(stdin) > STDIN_MAX:
        raise CannotDecode(
            f"stdin has more than {STDIN_MAX} bytes; make the network configuration smaller"
        )
    return stdin


def _descriptors(rights: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array("i")
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


def _exactly(conn: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = conn.recv_into(rest)
        if count == 0:
            raise IOFailure(f"the connection was closed with {len(rest)} bytes still to come")
        rest = rest[count:]
    return bytes(data)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise DeadlineExceeded(f"{what} did not arrive in time") from error
    except OSError as error:
        raise IOFailure(f"{what} did not arrive: {error}") from error
