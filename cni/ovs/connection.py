"""The connection to ovsdb-server: one for the life of vmlinkd, in one thread, with group commit.

Operations that arrive while a transaction is under way go into the next one together. When
ovsdb-server refuses a transaction, its two halves are sent again, and so on, so that one bad
operation fails alone. What ovs-vswitchd makes of a row is read from the monitor's updates.
The protocol is python-ovs's. Source: RFC 7047, ovsdb-server(7).
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ovs.json
import ovs.poller
import ovs.stream
from ovs.db.idl import ROW_DELETE, Idl, Row, SchemaHelper, Transaction

from cni.errors import SwitchRefused
from cni.ovs import schema
from cni.ovs.database import Database
from cni.ovs.json_parser import Parser
from cni.ovs.operations import Operations, Pending, View
from cni.spec.types import AttachmentKey

log = logging.getLogger("vmlink")

RETRY_MS = 1000  # between two attempts to connect
_MOST = 64  # operations in one transaction

# select(2) takes descriptors up to 1023, and a busy node has more.
ovs.poller.SelectPoll = select.poll
if ovs.json.PARSER != ovs.json.PARSER_C:
    ovs.json.Parser = Parser


class IndexedTables:
    """The rows of the replica, and an index that finds one by its key or name."""

    def __init__(self, idl: Replica) -> None:
        self._idl = idl
        self._by_index: dict[tuple[str, Any], Row] = {}
        self._indexes: dict[Any, list[tuple[str, Any]]] = {}  # under which a row was last put

    def note(self, row: Row, deleted: bool) -> None:
        """Take in that a row was inserted, changed or deleted."""
        for index in self._indexes.pop(row.uuid, ()):
            if self._by_index.get(index) is row:
                del self._by_index[index]
        if not deleted:
            self._indexes[row.uuid] = _indexes(row)
            self._by_index |= dict.fromkeys(self._indexes[row.uuid], row)

    def port(self, key: AttachmentKey) -> Row | None:
        """Return the row in Port of this attachment."""
        return self._find("Port", key)

    def interface(self, name: str) -> Row | None:
        """Return the row in Interface of this name."""
        return self._find("Interface", name)

    def rows(self, table: str) -> list[Row]:
        """Return all rows of `table` that the replica has."""
        return list(self._idl.tables[table].rows.values())

    def bridges(self) -> dict[str, str]:
        """Return the datapath type of each bridge, by its name."""
        return {row.name: row.datapath_type for row in self.rows("Bridge")}

    def _find(self, table: str, index: AttachmentKey | str) -> Row | None:
        row = self._by_index.get((table, index))
        # A new connection brings new rows, and nobody says that the old ones are void.
        valid = row is not None and self._idl.tables[table].rows.get(row.uuid) is row
        return row if valid else None


def _indexes(row: Row) -> list[tuple[str, Any]]:
    table = row._table.name
    if table == "Interface":
        return [(table, row.name)]
    key = schema.key_of(row) if table == "Port" else None
    return [(table, key)] if key else []


class Replica(Idl):  # type: ignore[misc]
    """python-ovs's replica of the database, which reports each change to a Connection."""

    def __init__(self, connection: Connection, remote: str, helper: SchemaHelper) -> None:
        self._connection = connection
        super().__init__(remote, helper)
        self._session.reconnect.set_backoff(RETRY_MS, RETRY_MS)

    @property
    def synced(self) -> bool:
        """Whether the connection is up and its monitor has sent the first contents."""
        same = self._session.get_seqno() == self._last_seqno
        return bool(self._session.is_connected() and same and self.state == self.IDL_S_MONITORING)

    def notify(self, event: str, row: Row, updates: Row | None = None) -> None:
        """Pass a change on. Called by python-ovs."""
        self._connection.changed(row, event == ROW_DELETE)


class Connection:
    """What the database's thread does: `run`, in which all other methods are called."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._batches: deque[list[Pending]] = deque()  # to be sent again, before new ones
        self._waiting: dict[str, list[Pending]] = defaultdict(list)  # committed, by interface
        self._transaction: Transaction | None = None
        self._sent: list[Pending] = []
        self._view = View()
        self._view_is_old = True
        self._connect()

    def _connect(self) -> None:
        settings = self._database.settings
        ovs.stream.Stream.ssl_set_private_key_file(settings.private_key or None)
        ovs.stream.Stream.ssl_set_certificate_file(settings.certificate or None)
        ovs.stream.Stream.ssl_set_ca_cert_file(settings.ca_cert or None)
        helper = SchemaHelper(schema_json=schema.schema())
        helper.register_all()
        self._idl = Replica(self, settings.db, helper)
        self.tables = IndexedTables(self._idl)
        for table in schema.OWNED:
            self._idl.cond_change(table, schema.owned_by(self._database.owner))

    def run(self) -> None:
        """Serve the queue until the database stops and the last transaction has its answer."""
        while not self._database.stopping or (self._transaction and self._idl.synced):
            try:
                self._turn()
            except Exception:  # whatever it is, later requests must be served
                log.exception("the connection to Open vSwitch's database failed; connecting again")
                self._idl.close()
                self._retry(self._sent)
                self._transaction, self._sent = None, []
                time.sleep(RETRY_MS / 1000)
                self._connect()
        self._idl.close()

    def _turn(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._database.wake_fd, 4096)
        self._idl.run()
        self._publish()
        if self._transaction:
            self._finish(self._transaction)
        poller = ovs.poller.Poller()
        if self._idl.synced and not self._transaction and (batch := self._next()):
            self._begin(batch)
            if not self._transaction:
                # More may be queued, or the connection broke: the next turn will see.
                poller.immediate_wake()
        poller.fd_wait(self._database.wake_fd, ovs.poller.POLLIN)
        self._idl.wait(poller)
        if self._database.stopping:
            poller.timer_wait(RETRY_MS)
        poller.block()

    def changed(self, row: Row, deleted: bool) -> None:
        """Take in a change of the replica, and settle the operations that waited for it."""
        table = row._table.name
        if table in ("Bridge", "Open_vSwitch"):
            self._view_is_old = True
            return
        self.tables.note(row, deleted)
        if table == "Interface":
            for pending in self._waiting.pop(row.name, ()):
                self._settle(pending)

    def _publish(self) -> None:
        """Give the other threads a new view when there is one."""
        connected = self._idl.synced
        if connected == self._view.connected and not self._view_is_old:
            return
        if connected:
            self._view, self._view_is_old = self._current_view(), False
        else:
            self._view = replace(self._view, connected=False)
        self._database.publish(self._view)

    def _current_view(self) -> View:
        view = View(connected=True, bridges=self.tables.bridges())
        for row in self.tables.rows("Open_vSwitch"):  # one row, or none in a new database
            config = row.other_config
            view = replace(
                view,
                dpdk=row.dpdk_initialized,
                userspace_tso=config.get("userspace-tso-enable") == "true",
                external_ids=dict(row.external_ids),
                vhost_directory=config.get("vhost-sock-dir", ""),
            )
        return view

    def _next(self) -> list[Pending]:
        return self._batches.popleft() if self._batches else self._database.take(_MOST)

    def _begin(self, batch: list[Pending]) -> None:
        operations: Operations = []
        for pending in batch:
            if pending.abandoned:
                continue
            try:
                composed = pending.operation.compose(self.tables, pending.again)
            except Exception as e:  # fails this operation, not the whole batch
                pending.future.set_exception(e)
                continue
            operations += composed
            if composed:
                self._sent.append(pending)
            else:
                self._settle(pending)
        if operations:
            self._transaction = Transaction(self._idl)
            for operation in operations:
                self._transaction.add_op(operation)
            self._finish(self._transaction)

    def _finish(self, transaction: Transaction) -> None:
        status = transaction.commit()
        if status == Transaction.INCOMPLETE:
            return
        self._transaction, sent, self._sent = None, self._sent, []
        if status in (Transaction.SUCCESS, Transaction.UNCHANGED):
            for pending in sent:
                self._settle(pending)
        elif status == Transaction.TRY_AGAIN:
            self._retry(sent)
        elif len(sent) > 1:
            half = len(sent) // 2
            self._batches.extendleft((sent[half:], sent[:half]))
        else:
            error = SwitchRefused(f"ovsdb-server refused: {transaction.get_error()}")
            sent[0].future.set_exception(error)

    def _retry(self, sent: list[Pending]) -> None:
        for pending in sent:
            pending.again = True
        if sent:
            self._batches.appendleft(sent)

    def _settle(self, pending: Pending) -> None:
        if pending.abandoned:
            return
        try:
            done = pending.operation.settled(self.tables)
        except Exception as e:  # fails this operation, not the whole batch
            pending.future.set_exception(e)
            return
        if done:
            pending.future.set_result(None)
        else:
            self._waiting[pending.operation.interface].append(pending)
