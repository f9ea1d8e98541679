"""Operations on their way to the database, with a connection that the test plays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event

import pytest

from cni.config.settings import Ovs
from cni.errors import CheckFailed, DeadlineExceeded, TryAgain
from cni.ovs.database import Database
from cni.ovs.operations import Operation, Operations, ReadOnly, Tables, View


class Write(Operation):
    def compose(self, tables: Tables, again: bool) -> Operations:
        return [{"op": "comment"}]


class Look(ReadOnly):
    def read(self, tables: Tables) -> None:
        raise CheckFailed("looked")


@pytest.fixture
def started() -> Event:
    return Event()


@pytest.fixture
def database(started: Event) -> Iterator[Database]:
    def connection(_: Database) -> Callable[[], None]:
        return started.set

    made = Database(Ovs("unix:/run/test/db.sock"), "test", connection)
    yield made
    if not made.stopping:
        made.close()


def test_what_is_queued_early_is_sent_first(database: Database, started: Event) -> None:
    first = database.enqueue(Write())
    assert not started.is_set()
    second = database.submit(Write())
    assert started.wait(10)
    assert database.take(1) == [first]
    assert database.take(9) == [second]


def test_the_end_cancels_what_only_waits(database: Database) -> None:
    waiting = database.enqueue(Write())
    database.close()
    with pytest.raises(TryAgain, match="vmlinkd is stopping"):
        waiting.wait(0, "late")
    with pytest.raises(TryAgain, match="vmlinkd is stopping"):
        database.enqueue(Write())


def test_an_operation_that_is_given_up_is_not_sent(database: Database) -> None:
    with pytest.raises(DeadlineExceeded, match="late"):
        database.enqueue(Write()).wait(0, "late")
    assert database.take(9) == []


def test_a_read_only_operation_writes_nothing(tables: Tables) -> None:
    assert Look().compose(tables, again=False) == []
    assert Look().interface == ""
    with pytest.raises(CheckFailed, match="looked"):
        Look().settled(tables)


@pytest.fixture
def tables() -> Tables:
    class Empty:
        def port(self, _key: object) -> None:
            return None

        def interface(self, _name: str) -> None:
            return None

        def rows(self, _table: str) -> list[object]:
            return []

        def bridges(self) -> dict[str, str]:
            return {}

    return Empty()


def test_where_vswitchd_makes_its_sockets(database: Database) -> None:
    assert database.vhost_directory() == "/run/test"
    database.publish(View(connected=True, bridges={}, vhost_directory="vhost"))
    assert database.vhost_directory() == "/run/test/vhost"
    assert database.look(0).connected
