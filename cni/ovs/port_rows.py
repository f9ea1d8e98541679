"""The rows of one port, as operations of RFC 7047, section 5.2.

Every row of ours has the owner, the container and the interface name in its external_ids.
Source: ovs-vswitchd.conf.db(5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cni.errors import BadConfig
from cni.ovs import ovn, schema
from cni.ovs.operations import Operations
from cni.spec.types import POOL, AttachmentKey, Bandwidth, is_plain

VHOSTUSER = "dpdkvhostuserclient"
VHOSTUSER_LISTENING = "dpdkvhostuser"  # deprecated, and the only one that Kata's Go runtime can use
_NO_QOS = ["set", []]


@dataclass(frozen=True)
class Port:
    """A port that the switch is asked for.

    `type` is the Interface's: "" for a link of the kernel. `vlan` is the access (or native) tag, 0
    for none, `trunk` the tags that pass tagged. `mtu` (bytes) is requested of a switch that sets
    the port's MTU itself; 0 otherwise. With `ovn` it is the logical port that `iface-id` in
    `external_ids` names.
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


class Rows:
    """Writes the rows of one attachment, marked with `owner`."""

    def __init__(self, owner: str, key: AttachmentKey) -> None:
        self._tag = key.digest  # sets named-uuids of one transaction apart
        self._ids = marks(owner, key)

    def insert(self, port: Port) -> Operations:
        """Add a new port to its bridge."""
        before, interface, row = self._of_pod(port)
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

    def update(self, port: Port) -> Operations:
        """Make the rows that another attachment had this attachment's."""
        before, interface, row = self._of_pod(port)
        changes = {"Interface": _policing(Bandwidth()) | interface, "Port": {"qos": _NO_QOS} | row}
        named = _is("name", port.name)
        return before + [
            {"op": "update", "table": table, "where": named, "row": change}
            for table, change in changes.items()
        ]

    def _of_pod(self, port: Port) -> tuple[Operations, dict[str, Any], dict[str, Any]]:
        """What depends on the pod: (inserts, columns of Interface, columns of Port)."""
        interface = {"external_ids": _map({**port.external_ids, **self._ids})}
        row = {"external_ids": _map(self._ids), "protected": self._ids[schema.CONTAINER] == POOL}
        if not port.bandwidth:
            return [], interface, row
        before, qos = self._qos(port.bandwidth, port.type)
        return before, interface | _policing(port.bandwidth), row | qos

    def _qos(self, bandwidth: Bandwidth, kind: str) -> tuple[Operations, dict[str, Any]]:
        """What limits traffic to the pod: a qdisc of the kernel, or DPDK's policer."""
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
    """What limits traffic from the pod: kbit/s and kbit, not rounded down to 0, which is none."""
    least = 1 if bandwidth.egress_rate else 0
    return {
        "ingress_policing_rate": max(bandwidth.egress_rate // 1000, least),
        "ingress_policing_burst": max(bandwidth.egress_burst // 1000, least),
    }


def marks(owner: str, key: AttachmentKey) -> dict[str, str]:
    """Return the external_ids by which a row is found again."""
    return {
        schema.OWNER: owner,
        schema.CONTAINER: key.container_id,
        schema.IFNAME: key.ifname,
    }


def remove(uuid: Any, ids: Mapping[str, str]) -> Operations:
    """Delete a port, `uuid` or None, and the QoS and Queue rows with these `marks`.

    The server deletes rows of Port and Interface when nothing refers to them any more; rows of QoS
    and Queue stay until somebody deletes them (RFC 7047, section 3.2, isRoot).
    """
    if uuid is None:
        return remove_limits(ids)
    ref = ["uuid", str(uuid)]
    return [
        # The server deletes the port at the commit only, too late for a QoS that it refers to.
        {"op": "update", "table": "Port", "where": [["_uuid", "==", ref]]}
        | {"row": {"qos": _NO_QOS}},
        {"op": "mutate", "table": "Bridge", "where": [["ports", "includes", ref]]}
        | {"mutations": [["ports", "delete", ref]]},
        *remove_limits(ids),
    ]


def remove_limits(ids: Mapping[str, str]) -> Operations:
    """Delete the QoS and Queue rows with these `marks`."""
    ours = [["external_ids", "includes", _map(ids)]]
    return [{"op": "delete", "table": table, "where": ours} for table in ("QoS", "Queue")]


def require(table: str, column: str, value: str) -> dict[str, Any]:
    """Have the server refuse the transaction unless there is such a row.

    python-ovs answers that with TRY_AGAIN, so that the operation is composed anew.
    """
    rows = {"where": _is(column, value), "columns": [column], "rows": [{column: value}]}
    return {"op": "wait", "table": table, "until": "==", "timeout": 0} | rows


def _is(column: str, value: str) -> list[Any]:
    return [[column, "==", value]]


def _map(data: Mapping[str, str]) -> list[Any]:
    """Raises BadConfig: python-ovs would try for ever to send what UTF-8 cannot encode."""
    for key, value in data.items():
        if not is_plain(key) or not is_plain(value):
            raise BadConfig(f"ovs.external_ids.{key}: expected a text, found {value!r}")
    return ["map", [[k, v] for k, v in data.items()]]
