"""The connection to OVSDB: group commit, errors per operation, servers that come and go."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any

import pytest
from ovs.db.idl import Transaction

from bench.testbed.node import Node
from cni.config.settings import Ovs
from cni.errors import BadConfig, DeadlineExceeded, SwitchRefused, TryAgain
from cni.ovs import open_database
from cni.ovs.database import Database
from cni.ovs.operations import Pending
from cni.ovs.port_ops import Add, Check, Collect, Port, Remove
from cni.spec.types import AttachmentKey
from tests import waits
from tests.ovs.ovskit import BRIDGE, switch_of

SECONDS = 30  # ovs-vswitchd waits up to 8 s before it reconnects
until = partial(waits.until, seconds=SECONDS)


def key(n: int) -> AttachmentKey:
    return AttachmentKey(f"c{n}", "eth0")


def add(database: Database, n: int, bridge: str = BRIDGE, type: str = "internal") -> Pending:
    port = Port(bridge, f"p{n}", type)
    return database.submit(Add(database.owner, key(n), port))


def remove(database: Database, *numbers: int) -> None:
    pending = [database.submit(Remove(database.owner, key(n))) for n in numbers]
    for each in pending:
        each.wait(SECONDS, "not removed")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def ovsdb(node: Node) -> int:
    server = switch_of(node).ovsdb
    assert server
    return server.pid


def vswitchd(node: Node) -> int:
    server = switch_of(node).vswitchd
    assert server
    return server.pid


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of operations in each transaction, in the order they are sent."""
    sent: list[int] = []
    real = Transaction.commit

    def commit(transaction: Transaction) -> Any:
        before = transaction._status
        status = real(transaction)
        if before == Transaction.UNCOMMITTED:
            sent.append(len(transaction._operations))
        return status

    monkeypatch.setattr(Transaction, "commit", commit)
    return sent


def test_what_arrives_meanwhile_is_committed_together(
    node: Node, database: Database, commits: list[int]
) -> None:
    with stopped(ovsdb(node)):
        pending = [add(database, 0)]
        until(lambda: bool(commits))
        pending += [add(database, n) for n in range(1, 30)]
    for each in pending:
        each.wait(SECONDS, "no ofport")
    assert commits == [4, 29 * 4]
    remove(database, *range(30))


def test_a_bad_operation_does_not_sink_its_neighbours(node: Node, database: Database) -> None:
    switch_of(node).vsctl("add-port", BRIDGE, "p3", "--", "set", "Interface", "p3", "type=internal")
    with stopped(ovsdb(node)):
        pending = {n: add(database, n) for n in range(8)}
        lost = add(database, 8, bridge="br9")
        absent = add(database, 9, type="")
    with pytest.raises(SwitchRefused, match=r"identical values .*name"):
        pending.pop(3).wait(SECONDS, "late")
    with pytest.raises(BadConfig, match=r"no bridge br9 \(there is br0\)"):
        lost.wait(SECONDS, "late")
    with pytest.raises(SwitchRefused, match=r"cannot make port p9: .*No such device"):
        absent.wait(SECONDS, "late")
    for each in pending.values():
        each.wait(SECONDS, "no ofport")
    remove(database, *pending, 9)
    switch_of(node).vsctl("del-port", "p3")


def test_an_add_that_is_tried_again_is_one_port(fragile: Node) -> None:
    """The server dies before it reads the request, or before it sends the answer."""
    database = open_database(Ovs(switch_of(fragile).db), "test")
    with closing(database):
        add(database, 1).wait(SECONDS, "no ofport")
        for n in (2, 3):
            with stopped(ovsdb(fragile)):
                pending = add(database, n)
                switch_of(fragile).kill_ovsdb()
            switch_of(fragile).start_ovsdb()
            pending.wait(SECONDS, "no ofport")
        assert switch_of(fragile).vsctl("list-ports", BRIDGE).split() == ["p1", "p2", "p3"]


def test_a_row_of_ours_that_was_left_is_replaced(node: Node, database: Database) -> None:
    add(database, 1).wait(SECONDS, "no ofport")
    tagged = Port(BRIDGE, "p1", "internal", vlan=7)
    database.submit(Add("test", key(1), tagged)).wait(SECONDS, "no ofport")
    database.submit(Check(key(1), tagged)).wait(SECONDS, "late")
    assert switch_of(node).vsctl("get", "Port", "p1", "tag").strip() == "7"
    remove(database, 1)


def test_who_waits_gives_up_at_the_deadline_and_nothing_is_tried_again(
    node: Node, database: Database
) -> None:
    with stopped(vswitchd(node)):
        pending = add(database, 1)
        with pytest.raises(DeadlineExceeded, match="no ofport"):
            pending.wait(0.2, "no ofport")
        assert pending.abandoned
        remove(database, 1)
    with stopped(ovsdb(node)):
        first = add(database, 1)
        with pytest.raises(DeadlineExceeded, match="no answer"):
            first.wait(0.1, "no answer")
        second = add(database, 2)
        assert second.abandon(), "it was sent, though the first has no answer yet"
        assert not first.abandon()
    remove(database, 1)
    assert "p2" not in switch_of(node).vsctl("list-ports", BRIDGE)


def test_a_bridge_that_goes_at_this_moment_leaves_no_rows(node: Node, database: Database) -> None:
    switch_of(node).add_bridge("br1")
    (row,) = switch_of(node).vsctl("--bare", "--columns=_uuid", "list", "Bridge", "br1").split()
    gone: dict[str, Any] = {"op": "mutate", "table": "Open_vSwitch", "where": []}
    gone |= {"mutations": [["bridges", "delete", ["uuid", row]]]}
    request = {"method": "transact", "params": ["Open_vSwitch", gone], "id": 1}
    until(lambda: "br1" in (database.look(1).bridges or {}))
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(switch_of(node).db.removeprefix("unix:"))
        with stopped(ovsdb(node)):
            other.sendall(json.dumps(request).encode())
            pending = add(database, 1, bridge="br1")
        with pytest.raises((BadConfig, SwitchRefused), match=r"no bridge br1|taken away"):
            pending.wait(SECONDS, "late")


def test_a_server_that_is_away_is_waited_for(fragile: Node) -> None:
    switch_of(fragile).kill_ovsdb()
    with closing(open_database(Ovs(switch_of(fragile).db), "test")) as database:
        with pytest.raises(TryAgain, match=r"^ovs\.db: no answer from unix:"):
            database.look(0.1)
        pending = add(database, 1)
        with pytest.raises(DeadlineExceeded, match="late"):
            pending.wait(0.1, "late")
        pending = add(database, 2)
        switch_of(fragile).start_ovsdb()
        pending.wait(SECONDS, "no ofport")
        assert switch_of(fragile).vsctl("list-ports", BRIDGE).split() == ["p2"]


def test_only_rows_of_the_owner_without_a_record_are_collected(
    node: Node, database: Database
) -> None:
    for n in (1, 2):
        add(database, n).wait(SECONDS, "no ofport")
    other = open_database(Ovs(switch_of(node).db), "other")
    other.enqueue(Collect("other", lambda _key: False))
    add(other, 3).wait(SECONDS, "no ofport")
    database.submit(Collect("test", lambda found: found == key(1))).wait(SECONDS, "late")
    assert switch_of(node).vsctl("list-ports", BRIDGE).split() == ["p1", "p3"]
    remove(database, 1)
    remove(other, 3)
    other.close()


def test_check_tells_what_it_found(node: Node, database: Database) -> None:
    port = Port(BRIDGE, "p1", "internal", vlan=7, trunk=(8, 9))
    database.submit(Add("test", key(1), port)).wait(SECONDS, "no ofport")
    check = Check(key(1), port)
    database.submit(check).wait(SECONDS, "late")
    switch_of(node).vsctl("set", "Port", "p1", "tag=6")
    with pytest.raises(Exception, match=r"expected tag \[7\] .*found \[6\]"):
        database.submit(check).wait(SECONDS, "late")
    switch_of(node).vsctl("del-port", "p1")
    with pytest.raises(Exception, match="expected a port of br0, found none"):
        database.submit(check).wait(SECONDS, "late")
