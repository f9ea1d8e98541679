"""Open vSwitch: one lasting connection to its database, and the rows that are ours in it."""

from __future__ import annotations

from collections.abc import Callable

from cni.config.settings import Ovs
from cni.ovs.database import Database


def open_database(settings: Ovs, owner: str) -> Database:
    """Return the database of one vmlinkd; it connects when it is first asked for something.

    `owner` marks vmlinkd's rows in the database.
    """
    return Database(settings, owner, _connection)


def _connection(database: Database) -> Callable[[], None]:
    # python-ovs costs tens of milliseconds and some MB, and a node without a switch needs neither.
    from cni.ovs.connection import Connection

    return Connection(database).run
