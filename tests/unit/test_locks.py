"""Locks by attachment: one holder at a time, no wait for other keys, no lock kept after use."""

from __future__ import annotations

import threading

import pytest

from cni.attach.locks import KeyLocks
from cni.cancel import Cancel
from cni.errors import DeadlineExceeded
from cni.spec.types import AttachmentKey

ONE, OTHER = AttachmentKey("c1", "eth0"), AttachmentKey("c1", "eth1")


class Holder(threading.Thread):
    """Holds the lock of a key: `inside` is set while it does, and `leave` makes it release it."""

    def __init__(self, locks: KeyLocks, key: AttachmentKey) -> None:
        super().__init__()
        self.locks, self.key = locks, key
        self.inside, self.leave = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with self.locks.held(self.key, Cancel(10)):
            self.inside.set()
            self.leave.wait(10)


def test_a_key_is_held_by_one_at_a_time() -> None:
    locks, most, inside = KeyLocks(), [0], [0]

    def work() -> None:
        for _ in range(200):
            with locks.held(ONE, Cancel(10)):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                threading.Event().wait(0)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert locks._locks == {}


def test_waiting_ends_at_the_deadline_and_another_key_is_free() -> None:
    locks = KeyLocks()
    holder = Holder(locks, ONE)
    assert holder.inside.wait(10)
    for seconds in (0.01, 0, -1):
        with pytest.raises(DeadlineExceeded, match="c1/eth0"), locks.held(ONE, Cancel(seconds)):
            pytest.fail("two threads hold one key")
    with locks.held(OTHER, Cancel(0)):
        assert set(locks._locks) == {ONE, OTHER}
    holder.leave.set()
    holder.join()
    assert locks._locks == {}


def test_who_waits_gets_it_next() -> None:
    locks = KeyLocks()
    first = Holder(locks, ONE)
    assert first.inside.wait(10)
    second = Holder(locks, ONE)
    assert not second.inside.is_set()
    first.leave.set()
    assert second.inside.wait(10)
    second.leave.set()
    for thread in (first, second):
        thread.join()
    assert locks._locks == {}


def test_an_error_gives_the_lock_back() -> None:
    locks = KeyLocks()
    with pytest.raises(ZeroDivisionError), locks.held(ONE, Cancel(1)):
        raise ZeroDivisionError
    assert locks._locks == {}
