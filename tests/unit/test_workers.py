"""The threads that serve vmlinkd's socket, and the further ones when all of them are blocked."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cni.daemon import workers
from cni.daemon.workers import Workers
from tests.waits import until

COUNT = 2


class Served:
    """A socket with workers, who answer with the name of their thread.

    A call `wait` is answered once `go` is set, one of the calls `one` for each release of the
    semaphore, and any other call at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.go = threading.Event()
        self.one = threading.Semaphore(0)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(64)
        self.workers = Workers(self.listener, COUNT, self.serve, "test")
        self.workers.start()

    def serve(self, conn: socket.socket) -> None:
        what = conn.recv(8)
        assert what != b"wait" or self.go.wait(20)
        assert what != b"one" or self.one.acquire(timeout=20)
        conn.sendall(threading.current_thread().name.encode())

    def ask(self, what: bytes) -> socket.socket:
        conn = socket.socket(socket.AF_UNIX)
        conn.settimeout(20)
        conn.connect(str(self.path))
        conn.sendall(what)
        return conn

    def close(self) -> None:
        self.go.set()
        self.one.release(64)
        if not self.workers._stopping.is_set():
            self.workers.stop()
        self.workers.join()
        self.listener.close()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(workers, "_PATIENCE", 0.05)
    made = Served(tmp_path / "sock")
    yield made
    made.close()
    until(lambda: not threads())


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("test-")]


def test_no_more_threads_than_were_asked_for(served: Served) -> None:
    for _ in range(5):
        with served.ask(b"now") as conn:
            assert conn.recv(16).startswith(b"test-")
    until(lambda: len(threads()) == COUNT)


def test_who_waits_keeps_nobody_else_waiting(served: Served) -> None:
    waiting = [served.ask(b"wait") for _ in range(3 * COUNT)]
    with served.ask(b"now") as conn:
        assert conn.recv(16).startswith(b"test-")
    served.go.set()
    for conn in waiting:
        with conn:
            assert conn.recv(16).startswith(b"test-")
    # A thread that is not needed any more ends after it has served one more call.
    until(lambda: COUNT <= len(threads()) <= 2 * COUNT)


def test_the_end_waits_for_what_is_in_flight(served: Served) -> None:
    with served.ask(b"wait") as conn:
        until(lambda: served.workers._free == COUNT - 1)
        served.workers.stop()
        joining = threading.Thread(target=served.workers.join)
        joining.start()
        until(lambda: len(threads()) == 1)
        served.go.set()
        joining.join()
        assert conn.recv(16).startswith(b"test-")


def test_there_is_an_end_to_more(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_MOST", 2 * COUNT)
    waiting = [served.ask(b"wait") for _ in range(4 * COUNT)]
    until(lambda: len(threads()) == 2 * COUNT + 1)
    time.sleep(0.2)
    assert len(threads()) == 2 * COUNT + 1
    served.go.set()
    for conn in waiting:
        with conn:
            assert conn.recv(16).startswith(b"test-")


def test_a_few_that_end_are_no_reason_for_the_rest_to_wait(served: Served) -> None:
    """A call that ends only lets in the next one of the queue, which blocks as well."""
    many, ended = 20 * COUNT, 0
    waiting = [served.ask(b"one") for _ in range(many)]
    with served.ask(b"now") as conn:
        conn.settimeout(0.8 * workers._PATIENCE)
        while not answered(conn):
            served.one.release()
            ended += 1
    assert ended < many / 2
    served.one.release(many - ended)
    for conn in waiting:
        with conn:
            assert conn.recv(16).startswith(b"test-")


def answered(conn: socket.socket) -> bool:
    with suppress(TimeoutError):
        return conn.recv(16).startswith(b"test-")
    return False


def test_those_that_went_take_no_room(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_MOST", 2 * COUNT)
    for _ in range(2):
        served.go.clear()
        waiting = [served.ask(b"wait") for _ in range(2 * COUNT)]
        until(lambda: served.workers._free == 0 and len(threads()) == 2 * COUNT + 1)
        served.go.set()
        for conn in waiting:
            with conn:
                assert conn.recv(16).startswith(b"test-")
        until(lambda: len(threads()) == COUNT)
