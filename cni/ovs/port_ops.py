"""Operations on ports: add, rebind, remove, check, find, collect.

Source: ovs-vswitchd.conf.db(5), tables Port and Interface.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cni.errors import BadConfig, CheckFailed, SwitchRefused
from cni.ovs import ovn, port_rows, schema
from cni.ovs.operations import Operation, Operations, ReadOnly, Tables
from cni.ovs.port_rows import VHOSTUSER, VHOSTUSER_LISTENING, Port, Rows, marks
from cni.spec.types import AttachmentKey

__all__ = [
    "VHOSTUSER", "VHOSTUSER_LISTENING", "Add", "Bind", "Check", "Collect", "Find", "Port", "Remove",
    "missing_bridge",
]  # fmt: skip

log = logging.getLogger("vmlink")


@dataclass(frozen=True)
class Add(Operation):
    """Add a port. Settled when ovs-vswitchd has set its ofport and, with OVN, it is installed.

    Rows that are left from an earlier ADD of `key` are replaced. Raises BadConfig when the bridge
    is missing, SwitchRefused when ovs-vswitchd cannot make the port, TryAgain when another
    Interface takes its logical port.
    """

    owner: str
    key: AttachmentKey
    port: Port

    @property
    def interface(self) -> str:
        """The new port's."""
        return self.port.name

    def compose(self, tables: Tables, again: bool) -> Operations:
        """Return nothing when an earlier try was committed."""
        port, bridges = self.port, tables.bridges()
        if port.bridge not in bridges:
            raise BadConfig(missing_bridge(port.bridge, bridges))
        old = tables.port(self.key)
        if old is not None and again:
            return []
        return [
            *(port_rows.remove(old.uuid, marks(self.owner, self.key)) if old is not None else ()),
            # The bridge may be deleted before this is committed.
            port_rows.require("Bridge", "name", port.bridge),
            *(ovn.take(port.iface_id, port.name) if port.ovn else ()),
            *Rows(self.owner, self.key).insert(port),
        ]

    def settled(self, tables: Tables) -> bool:
        """Tell whether the port works."""
        return _works(tables, self.port, since=0)


@dataclass(frozen=True)
class Bind(Operation):
    """Make a port of attachment `former` one of `key`: hand a prepared one out, or take it back.

    Limits and external_ids of `former` are removed. Settled as Add is; `since` (ms since the
    epoch) tells whether OVN's answer is about this binding or the one before. Raises SwitchRefused
    when the port is gone, TryAgain as Add does.

    A prepared port is `protected` and a pod's is not: at that change the switch forgets the MAC
    addresses that it has learned on the port (bundle_set in ofproto/ofproto-dpif.c).
    """

    owner: str
    former: AttachmentKey
    key: AttachmentKey
    port: Port
    since: int = field(default_factory=lambda: time.time_ns() // 1_000_000)

    @property
    def interface(self) -> str:
        """The port's."""
        return self.port.name

    def compose(self, tables: Tables, again: bool) -> Operations:
        """Return nothing when an earlier try was committed."""
        port = self.port
        if again and tables.port(self.key) is not None:
            return []
        if tables.port(self.former) is None:
            raise _removed(port.name)
        return [
            port_rows.require("Port", "name", port.name),
            *(ovn.take(port.iface_id, port.name) if port.ovn else ()),
            *port_rows.remove_limits(marks(self.owner, self.former)),
            *Rows(self.owner, self.key).update(port),
        ]

    def settled(self, tables: Tables) -> bool:
        """Tell whether the port works."""
        return _works(tables, self.port, self.since)


def _works(tables: Tables, port: Port, since: int) -> bool:
    row = tables.interface(port.name)
    if row is None:
        raise _removed(port.name)
    if row.error:
        raise SwitchRefused(
            f"ovs-vswitchd cannot make port {row.name}: {row.error[0]}; see ovs-vswitchd's log"
        )
    if not row.ofport or row.ofport[0] <= 0:
        return False
    return not port.ovn or ovn.installed(row, port.iface_id, since)


def _removed(name: str) -> SwitchRefused:
    return SwitchRefused(
        f"port {name} was taken away by another program; find out which one, and try again"
    )


@dataclass(frozen=True)
class Remove(Operation):
    """Remove all rows of an attachment, or of the prepared port that it was about to get."""

    owner: str
    key: AttachmentKey

    def compose(self, tables: Tables, again: bool) -> Operations:
        """Return what removes the rows that there are."""
        row = tables.port(self.key)
        if row is None and self.key.prepared:
            row = tables.port(AttachmentKey.of_prepared(self.key.prepared))
        uuid = row.uuid if row is not None else None
        return port_rows.remove(uuid, marks(self.owner, self.key))


@dataclass
class Find(ReadOnly):
    """Find the port of an attachment: `key` becomes the one that also names a prepared port."""

    key: AttachmentKey

    def read(self, tables: Tables) -> None:
        """Set `key`, which stays as it is when there is no such port."""
        row = tables.port(self.key)
        self.key = (schema.key_of(row) if row is not None else None) or self.key


@dataclass(frozen=True)
class Check(ReadOnly):
    """Compare the rows of an attachment with `port`. Raises CheckFailed when they differ."""

    key: AttachmentKey
    port: Port

    def read(self, tables: Tables) -> None:
        """Raise CheckFailed with what was expected and what was found."""
        name = self.port.name
        port, row = tables.port(self.key), tables.interface(name)
        if port is None or row is None:
            raise CheckFailed(f"{name}: expected a port of {self.port.bridge}, found none")
        expected = ([self.port.vlan] if self.port.vlan else [], list(self.port.trunk))
        if (port.tag, port.trunks) != expected:
            raise CheckFailed(
                f"{name}: expected tag {expected[0]} and trunks {expected[1]}, found {port.tag} "
                f"and {port.trunks}"
            )
        if row.error or not row.ofport or row.ofport[0] < 0:
            problem = row.error[0] if row.error else "no ofport"
            raise CheckFailed(f"{name}: expected an ofport, found {problem}")
        if self.port.ovn:
            ovn.check(row, self.port.iface_id)


@dataclass(frozen=True)
class Collect(Operation):
    """Remove the rows of ours whose attachment is not `known`, such as those left by a reboot."""

    owner: str
    known: Callable[[AttachmentKey], bool]

    def compose(self, tables: Tables, again: bool) -> Operations:
        """Return what removes them, and log each attachment."""
        rows = (row for table in schema.OWNED for row in tables.rows(table))
        keys = dict.fromkeys(map(schema.key_of, rows))
        out: Operations = []
        for key in keys:
            if key and not self.known(key):
                log.info("removing the port of %s from Open vSwitch: there is no record of it", key)
                out += Remove(self.owner, key).compose(tables, again)
        return out


def missing_bridge(name: str, bridges: Mapping[str, str]) -> str:
    """Return the message for a bridge that is not among `bridges`."""
    names = ", ".join(sorted(bridges)) or "none"
    return f"ovs.bridge: there is no bridge {name} (there is {names}); make it or name another"
