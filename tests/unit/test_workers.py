"""Threads that serve a socket, and what comes when all of them wait for somebody else."""

import socket
import threading
import time
from contextlib import suppress

import pytest

from cni.daemon import workers
from cni.daemon.workers import Workers
from tests.waits import until

COUNT = 2


class Served:
    """Answers at once, to `wait` when it is let go, to `one` as often as it is told."""

    def __init__(self, path):
        self.path = path
        self.go = threading.Event()
        self.one = threading.Semaphore(0)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(64)
        self.workers = Workers(self.listener, COUNT, self.serve, "test")
        self.workers.start()

    def serve(self, conn):
        what = conn.recv(8)
        assert what != b"wait" or self.go.wait(20)
        assert what != b"one" or self.one.acquire(timeout=20)
        conn.sendall(threading.current_thread().name.encode())

    def ask(self, what):
        conn = socket.socket(socket.AF_UNIX)
        conn.settimeout(20)
        conn.connect(str(self.path))
        conn.sendall(what)
        return conn

    def close(self):
        self.go.set()
        self.one.release(64)
        if not self.workers._stopping.is_set():
            self.workers.stop()
        self.workers.join()
        self.listener.close()


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_PATIENCE", 0.05)
    made = Served(tmp_path / "sock")
    yield made
    made.close()
    until(lambda: not threads())


def threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("test-")]


def test_no_more_threads_than_were_asked_for(served):
    for _ in range(5):
        with served.ask(b"now") as conn:
            assert conn.recv(16).startswith(b"test-")
    until(lambda: len(threads()) == COUNT)


def test_who_waits_keeps_nobody_else_waiting(served):
    waiting = [served.ask(b"wait") for _ in range(3 * COUNT)]
    with served.ask(b"now") as conn:
        assert conn.recv(16).startswith(b"test-")
    served.go.set()
    for conn in waiting:
        with conn:
            assert conn.recv(16).startswith(b"test-")
    # Those that nobody needs go when they have served once more.
    until(lambda: COUNT <= len(threads()) <= 2 * COUNT)


def test_the_end_waits_for_what_is_in_flight(served):
    with served.ask(b"wait") as conn:
        until(lambda: served.workers._free == COUNT - 1)
        served.workers.stop()
        joining = threading.Thread(target=served.workers.join)
        joining.start()
        until(lambda: len(threads()) == 1)
        served.go.set()
        joining.join()
        assert conn.recv(16).startswith(b"test-")


def test_there_is_an_end_to_more(served, monkeypatch):
    monkeypatch.setattr(workers, "_MOST", 2 * COUNT)
    waiting = [served.ask(b"wait") for _ in range(4 * COUNT)]
    until(lambda: len(threads()) == 2 * COUNT + 1)
    time.sleep(0.2)
    assert len(threads()) == 2 * COUNT + 1
    served.go.set()
    for conn in waiting:
        with conn:
            assert conn.recv(16).startswith(b"test-")


def test_a_few_that_end_are_no_reason_for_the_rest_to_wait(served):
    """Those in the queue wait, too, and each that ends makes way for one of them alone."""
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


def answered(conn):
    with suppress(TimeoutError):
        return conn.recv(16).startswith(b"test-")
    return False


def test_those_that_went_take_no_room(served, monkeypatch):
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
