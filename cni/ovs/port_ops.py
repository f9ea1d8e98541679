"""The rows of a port: made, given to another, taken away, looked at, collected.

Source: ovs-vswitchd.conf.db(5); operations as in RFC 7047, section 5.2. Every row of ours carries
the owner, the container and the interface name in its external_ids.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cni.config.network import Bandwidth
from cni.errors import BadConfig, CheckFailed, SwitchRefused
from cni.ovs import ovn, schema
from cni.ovs.database import Operations
from cni.spec.types import POOL, AttachmentKey

if TYPE_CHECKING:
    from cni.ovs.connection import Tables

log = logging.getLogger("vmlink")

VHOSTUSER = "dpdkvhostuserclient"
VHOSTUSER_LISTENING = "dpdkvhostuser"  # deprecated, and all that Kata's runtime in Go can use
_NONE = ["set", []]


@dataclass(frozen=True)
class Port:
    """What is asked of the switch. `type` is the Interface's: "" for a link of the kernel.

    `mtu` (bytes) is requested where the switch is the one that sets it; 0 where it is not. With
    `ovn` it is the logical port that `iface-id` of `external_ids` names.
    """

    bridge: str
    name: str
    type: str = ""
    vlan: int = 0
    trunk: tuple[int, ...] = ()
    mtu: int = 0
    external_ids: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    bandwidth: Bandwidth | None = None
    ovn: bool = False

    @property
    def iface_id(self) -> str:
        """The logical port; "" for none."""
        return self.external_ids[ovn.IFACE_ID] if self.ovn else ""


@dataclass(frozen=True)
class Add:
    """Settled when ovs-vswitchd has given the interface its ofport, and OVN installed it."""

    owner: str
    key: AttachmentKey
    port: Port

    @property
    def interface(self) -> str:
        return self.port.name

    def compose(self, tables: Tables, again: bool) -> Operations:
        port, bridges = self.port, tables.bridges()
        if port.bridge not in bridges:
            raise BadConfig(missing_bridge(port.bridge, bridges))
        known = tables.port(self.key)
        if known is not None and again:
            return []
        ids = _ids(self.owner, self.key)
        rows = Rows(self.key.digest, ids)
        return [
            *(_removal(known.uuid, ids) if known is not None else ()),
            # Nothing is added to a bridge that goes away at this moment.
            _exists("Bridge", "name", port.bridge),
            *(ovn.take(port.iface_id, port.name) if port.ovn else ()),
            *rows.port(port),
        ]

    def settled(self, tables: Tables) -> bool:
        return _made(tables, self.port, 0)


@dataclass(frozen=True)
class Bind:
    """A port that is there, `former`'s, becomes `key`'s: a kit's a pod's, or the other way. Nothing
    stays of what was noted for `former`. Settled as an Add is, at the commit without OVN; `since`
    (ms since the epoch) tells what OVN writes about it from what it wrote about the former one.

    A pool's ports are protected: the switch forgets the addresses that it has learned on a port
    when that changes (bundle_set in ofproto/ofproto-dpif.c).
    """

    owner: str
    former: AttachmentKey
    key: AttachmentKey
    port: Port
    since: int = field(default_factory=lambda: time.time_ns() // 1_000_000)

    @property
    def interface(self) -> str:
        return self.port.name

    def compose(self, tables: Tables, again: bool) -> Operations:
        port = self.port
        if again and tables.port(self.key) is not None:
            return []
        if tables.port(self.former) is None:
            raise SwitchRefused(f"port {port.name} was taken away by somebody else")
        rows = Rows(self.key.digest, _ids(self.owner, self.key))
        return [
            _exists("Port", "name", port.name),
            *(ovn.take(port.iface_id, port.name) if port.ovn else ()),
            *_unlimited(_ids(self.owner, self.former)),
            *rows.again(port),
        ]

    def settled(self, tables: Tables) -> bool:
        return _made(tables, self.port, self.since)


def _made(tables: Tables, port: Port, since: int) -> bool:
    row = tables.interface(port.name)
    if row is None:
        raise SwitchRefused(f"port {port.name} was taken away by somebody else")
    if row.error:
        raise SwitchRefused(f"ovs-vswitchd cannot make port {row.name}: {row.error[0]}")
    if not row.ofport or row.ofport[0] <= 0:
        return False
    return not port.ovn or ovn.installed(row, port.iface_id, since)


@dataclass
class Find:
    """`key` is settled with the kit of the pool that the attachment has, if it has one."""

    key: AttachmentKey
    interface: str = ""

    def compose(self, tables: Tables, again: bool) -> Operations:
        return []

    def settled(self, tables: Tables) -> bool:
        row = tables.port(self.key)
        self.key = (schema.key_of(row) if row is not None else None) or self.key
        return True


@dataclass(frozen=True)
class Remove:
    """Settled when the rows are gone, also those of a kit that was to be the attachment's."""

    owner: str
    key: AttachmentKey
    interface: str = ""

    def compose(self, tables: Tables, again: bool) -> Operations:
        row, kit = tables.port(self.key), self.key.kit
        if row is None and kit:
            row = tables.port(AttachmentKey.of_kit(kit))
        return _removal(row.uuid if row is not None else None, _ids(self.owner, self.key))

    def settled(self, tables: Tables) -> bool:
        return True


@dataclass(frozen=True)
class Check:
    """Settled when the rows are as `port` says. Raises CheckFailed otherwise."""

    key: AttachmentKey
    port: Port
    interface: str = ""

    def compose(self, tables: Tables, again: bool) -> Operations:
        return []

    def settled(self, tables: Tables) -> bool:
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
            found = row.error[0] if row.error else "no ofport"
            raise CheckFailed(f"{name}: expected an ofport, found {found}")
        if self.port.ovn:
            ovn.check(row, self.port.iface_id)
        return True


@dataclass(frozen=True)
class Collect:
    """Rows of ours whose attachment is not known any more, as after a reboot."""

    owner: str
    known: Callable[[AttachmentKey], bool]
    interface: str = ""

    def compose(self, tables: Tables, again: bool) -> Operations:
        rows = (row for table in schema.OWNED for row in tables.owned(table))
        found: dict[AttachmentKey | None, None] = dict.fromkeys(map(schema.key_of, rows))
        out: Operations = []
        for key in found:
            if key and not self.known(key):
                log.info("the rows of %s have no record and are collected", key)
                out += Remove(self.owner, key).compose(tables, again)
        return out

    def settled(self, tables: Tables) -> bool:
        return True


def missing_bridge(name: str, bridges: Mapping[str, str]) -> str:
    there = ", ".join(sorted(bridges)) or "none"
    return f"ovs.bridge: there is no bridge {name} (there is {there}); make it or name another"


class Rows:
    """What is written for one port; named-uuids begin with `tag`."""

    def __init__(self, tag: str, ids: Mapping[str, str]) -> None:
        self._tag = tag
        self._ids = ids

    def port(self, port: Port) -> Operations:
        before, interface, row = self._pods(port)
        interface |= {"name": port.name, "type": port.type, "options": _map(port.options)}
        if port.mtu:
            interface["mtu_request"] = port.mtu
        row |= {"name": port.name, "interfaces": self._named("i"), **_vlan(port)}
        added = [["ports", "insert", self._named("p")]]
        return [
            *before,
            self._insert("Interface", "i", interface),
            self._insert("Port", "p", row),
            {"op": "mutate", "table": "Bridge", "where": _is("name", port.bridge)}
            | {"mutations": added},
        ]

    def again(self, port: Port) -> Operations:
        """The rows are there, for another pod."""
        before, interface, row = self._pods(port)
        changes = {"Interface": _policing(Bandwidth()) | interface, "Port": {"qos": _NONE} | row}
        named = _is("name", port.name)
        return before + [
            {"op": "update", "table": table, "where": named, "row": change}
            for table, change in changes.items()
        ]

    def _pods(self, port: Port) -> tuple[Operations, dict[str, Any], dict[str, Any]]:
        """What depends on the pod: (inserts, columns of Interface, columns of Port)."""
        interface = {"external_ids": _map({**port.external_ids, **self._ids})}
        row = {"external_ids": _map(self._ids), "protected": self._ids[schema.CONTAINER] == POOL}
        if not port.bandwidth:
            return [], interface, row
        before, qos = self._qos(port.bandwidth, port.type)
        return before, interface | _policing(port.bandwidth), row | qos

    def _qos(self, bandwidth: Bandwidth, kind: str) -> tuple[Operations, dict[str, Any]]:
        """What limits the way to the pod: a shaper of the kernel's, or DPDK's policer."""
        rate, burst = bandwidth.ingress_rate, bandwidth.ingress_burst
        if not rate:
            return [], {}
        row: dict[str, Any] = {"external_ids": _map(self._ids)}
        if kind:
            config = {"cir": str(max(rate // 8, 1)), "cbs": str(max(burst // 8, 1))}
            row |= {"type": "egress-policer", "other_config": _map(config)}
            return [self._insert("QoS", "s", row)], {"qos": self._named("s")}
        limits = {"max-rate": str(rate), "burst": str(burst)}
        queue = {"external_ids": _map(self._ids), "other_config": _map(limits)}
        row |= {"type": "linux-htb", "other_config": _map({"max-rate": str(rate)})}
        row |= {"queues": ["map", [[0, self._named("q")]]]}
        return [
            self._insert("Queue", "q", queue),
            self._insert("QoS", "s", row),
        ], {"qos": self._named("s")}

    def _named(self, what: str) -> list[str]:
        return ["named-uuid", f"{what}{self._tag}"]

    def _insert(self, table: str, what: str, row: dict[str, Any]) -> dict[str, Any]:
        return {"op": "insert", "table": table, "row": row, "uuid-name": self._named(what)[1]}


def _vlan(port: Port) -> dict[str, Any]:
    """Source: ovs-vswitchd.conf.db(5), table Port, "VLAN Configuration"."""
    row: dict[str, Any] = {}
    if port.vlan:
        row["tag"] = port.vlan
    if port.trunk:
        row["trunks"] = ["set", list(port.trunk)]
    if port.vlan or port.trunk:
        both = "native-untagged" if port.vlan else "trunk"
        row["vlan_mode"] = both if port.trunk else "access"
    return row


def _policing(bandwidth: Bandwidth) -> dict[str, int]:
    """What limits the way from the pod; kbit/s and kbit, never rounded to 0, which is no limit."""
    least = 1 if bandwidth.egress_rate else 0
    return {
        "ingress_policing_rate": max(bandwidth.egress_rate // 1000, least),
        "ingress_policing_burst": max(bandwidth.egress_burst // 1000, least),
    }


def _ids(owner: str, key: AttachmentKey) -> dict[str, str]:
    return {
        schema.OWNER: owner,
        schema.CONTAINER: key.container_id,
        schema.IFNAME: key.ifname,
    }


def _removal(uuid: Any, ids: Mapping[str, str]) -> Operations:
    """A port goes with its interface when no bridge has it; QoS and Queue are roots."""
    out: Operations = []
    if uuid is not None:
        ref = ["uuid", str(uuid)]
        gone = [["ports", "delete", ref]]
        out = [
            # The port goes at the commit, which is too late for its QoS.
            {"op": "update", "table": "Port", "where": [["_uuid", "==", ref]]}
            | {"row": {"qos": _NONE}},
            {"op": "mutate", "table": "Bridge", "where": [["ports", "includes", ref]]}
            | {"mutations": gone},
        ]
    return out + _unlimited(ids)


def _unlimited(ids: Mapping[str, str]) -> Operations:
    ours = [["external_ids", "includes", _map(ids)]]
    return [{"op": "delete", "table": table, "where": ours} for table in ("QoS", "Queue")]


def _exists(table: str, column: str, value: str) -> dict[str, Any]:
    """Refuses the transaction where there is no such row, so that it is composed anew."""
    found = {"where": _is(column, value), "columns": [column], "rows": [{column: value}]}
    return {"op": "wait", "table": table, "until": "==", "timeout": 0} | found


def _is(column: str, value: str) -> list[Any]:
    return [[column, "==", value]]


def _map(data: Mapping[str, str]) -> list[Any]:
    return ["map", [[k, v] for k, v in data.items()]]
