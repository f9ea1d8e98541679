"""A port of the switch as a logical port of OVN.

ovn-controller claims the logical port that the `iface-id` of an Interface on the integration
bridge names, and sets `ovn-installed` when all of its flows are in place.
Source: ovn-controller(8), ovn-nb(5).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cni.errors import AttachmentExists, CheckFailed, DeadlineExceeded, TryAgain
from cni.ovs.operations import Operations, ReadOnly, Tables, View
from cni.spec.types import AttachmentKey

IFACE_ID, IFACE_ID_VER = "iface-id", "iface-id-ver"
INSTALLED, INSTALLED_TS = "ovn-installed", "ovn-installed-ts"
_BRIDGE = "br-int"  # ovn-controller's default


def refusal(view: View, bridge: str) -> str:
    """Say why OVN will not bind a port of this bridge; "" when nothing speaks against it.

    Only the switch's own database is asked.
    """
    ids = view.external_ids
    for key in ("system-id", "ovn-remote"):
        if not _option(ids, key):
            return (
                f"ovs.ovn: this node is no chassis: Open_vSwitch has no external_ids:{key}; set it "
                "as ovn-controller(8) says"
            )
    return wrong_bridge(view, bridge)


def wrong_bridge(view: View, bridge: str) -> str:
    """Say that `bridge` is not OVN's integration bridge; "" when it is."""
    integration = _option(view.external_ids, "ovn-bridge") or _BRIDGE
    if integration == bridge:
        return ""
    return f"ovs.bridge: OVN's is {integration}, not {bridge}; name that one"


def _option(ids: Mapping[str, str], key: str) -> str:
    """A key with the chassis' name at its end goes first (ovn-controller(8))."""
    return ids.get(f"{key}-{ids.get('system-id')}") or ids.get(key, "")


def take(iface_id: str, name: str) -> Operations:
    """Take a logical port from every Interface but `name`.

    Of two Interfaces with one `iface-id` ovn-controller may keep the older.
    """
    others = [["external_ids", "includes", ["map", [[IFACE_ID, iface_id]]]], ["name", "!=", name]]
    without = [["external_ids", "delete", ["set", [IFACE_ID]]]]
    return [{"op": "mutate", "table": "Interface", "where": others, "mutations": without}]


class Claims:
    """Which attachment has each logical port: that whose ADD came last, of the newest sandbox.

    An ADD that waited for long may be of a sandbox that is gone. Only ADDs of this process can be
    late: what a former one had not finished was undone. Threads may share one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, tuple[float, AttachmentKey]] = {}

    @contextmanager
    def taken(self, iface_id: str, key: AttachmentKey, began: float) -> Iterator[None]:
        """Take a logical port for an ADD that came at `began`, and keep others off meanwhile.

        Raises AttachmentExists when an ADD that came later has it.
        """
        with self._lock:
            since, holder = self._held.get(iface_id, (began, key))
            if since > began and holder != key:
                raise AttachmentExists(
                    f"iface-id: logical port {iface_id} belongs to {holder}, whose ADD came after "
                    f"that of {key}; DEL the older sandbox"
                )
            self._held[iface_id] = began, key
            yield

    def release(self, key: AttachmentKey) -> None:
        """Give back what the attachment still has."""
        with self._lock:
            self._held = {port: held for port, held in self._held.items() if held[1] != key}


def installed(row: Any, iface_id: str, since: int) -> bool:
    """Tell whether OVN has the flows of an Interface's logical port in place.

    An answer from before `since` (ms since the epoch) is about an earlier binding of the row.
    Raises TryAgain when another Interface has taken the logical port.
    """
    ids = row.external_ids
    if ids.get(IFACE_ID) != iface_id:
        raise TryAgain(
            f"iface-id: logical port {iface_id} was taken from {row.name} by another Interface; "
            "DEL the older attachment"
        )
    return ids.get(INSTALLED) == "true" and int(ids.get(INSTALLED_TS, since)) >= since


def check(row: Any, iface_id: str) -> None:
    """Raise CheckFailed unless OVN has installed this logical port on the Interface `row`."""
    for key, expected in ((IFACE_ID, iface_id), (INSTALLED, "true")):
        if (value := row.external_ids.get(key)) != expected:
            raise CheckFailed(f"{row.name}: expected {key} {expected}, found {value or 'none'}")


@dataclass(frozen=True)
class Explain(ReadOnly):
    """Say why the Interface `name` is not ready in time; always raises DeadlineExceeded.

    `remote` is the southbound database, as Open_vSwitch's `external_ids:ovn-remote` has it.
    """

    name: str
    iface_id: str
    remote: str

    def read(self, tables: Tables) -> None:
        """Raise DeadlineExceeded with what was waited for and what there is instead."""
        row = tables.interface(self.name)
        if row is None or not row.ofport or row.ofport[0] < 0:
            raise DeadlineExceeded(
                f"ovs-vswitchd has not made port {self.name} in time; is it running?"
            )
        ids, version = row.external_ids, row.external_ids.get(IFACE_ID_VER)
        state = f"ofport {row.ofport[0]}, {INSTALLED} {ids.get(INSTALLED, 'not set')}"
        bound = f", with no {IFACE_ID_VER} but {version}" if version else ""
        raise DeadlineExceeded(
            f"ovs.ovn: logical port {self.iface_id} was not installed in time (Interface "
            f"{self.name}: {state}); is ovn-controller running and connected to "
            f"{self.remote or 'ovn-remote, which is not set'}, and is there a logical switch port "
            f"{self.iface_id}{bound}, which no other chassis is to have?"
        )
