"""A port of the switch as a logical port of OVN: bound by `iface-id`, and what OVN answers.

ovn-controller claims the logical port that an Interface of the integration bridge names, and
writes `ovn-installed` when all of its flows are in place. Source: ovn-controller(8), ovn-nb(5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cni.errors import CheckFailed, DeadlineExceeded, TryAgain
from cni.ovs.database import Operations, View

if TYPE_CHECKING:
    from cni.ovs.connection import Tables

IFACE_ID, IFACE_ID_VER = "iface-id", "iface-id-ver"
INSTALLED, INSTALLED_TS = "ovn-installed", "ovn-installed-ts"
_BRIDGE = "br-int"  # ovn-controller's default


def refusal(view: View, bridge: str) -> str:
    """Why OVN will not bind a port of this bridge, as far as the switch's own database tells; ""
    where nothing speaks against it."""
    ids = view.external_ids
    for key in ("system-id", "ovn-remote"):
        if not _option(ids, key):
            return f"ovs.ovn: this node is no chassis: Open_vSwitch has no external_ids:{key}"
    return wrong_bridge(view, bridge)


def wrong_bridge(view: View, bridge: str) -> str:
    its = _option(view.external_ids, "ovn-bridge") or _BRIDGE
    return "" if its == bridge else f"ovs.bridge: OVN's is {its}, not {bridge}; name that one"


def _option(ids: Mapping[str, str], key: str) -> str:
    """A chassis may have options of its own, which come first."""
    return ids.get(f"{key}-{ids.get('system-id')}") or ids.get(key, "")


def take(iface_id: str, name: str) -> Operations:
    """Take a logical port from whoever has it but the Interface `name`: of two with the same
    `iface-id` ovn-controller may keep the former."""
    held = [["external_ids", "includes", ["map", [[IFACE_ID, iface_id]]]], ["name", "!=", name]]
    gone = [["external_ids", "delete", ["set", [IFACE_ID]]]]
    return [{"op": "mutate", "table": "Interface", "where": held, "mutations": gone}]


def installed(row: Any, iface_id: str, since: int) -> bool:
    """Whether OVN has the port in place. What it wrote before `since` (ms since the epoch) was
    about the row's former port. Raises TryAgain when another Interface has it now."""
    ids = row.external_ids
    if ids.get(IFACE_ID) != iface_id:
        raise TryAgain(
            f"iface-id: logical port {iface_id} was taken from {row.name} by another Interface; "
            "DEL the older attachment"
        )
    return ids.get(INSTALLED) == "true" and int(ids.get(INSTALLED_TS, since)) >= since


def check(row: Any, iface_id: str) -> None:
    """Raises CheckFailed."""
    for key, expected in ((IFACE_ID, iface_id), (INSTALLED, "true")):
        if (found := row.external_ids.get(key)) != expected:
            raise CheckFailed(f"{row.name}: expected {key} {expected}, found {found or 'none'}")


@dataclass(frozen=True)
class Explain:
    """Raises DeadlineExceeded, which says what was waited for and what there is instead."""

    name: str
    iface_id: str
    remote: str
    interface: str = ""

    def compose(self, tables: Tables, again: bool) -> Operations:
        return []

    def settled(self, tables: Tables) -> bool:
        row = tables.interface(self.name)
        if row is None or not row.ofport or row.ofport[0] < 0:
            raise DeadlineExceeded(
                f"ovs-vswitchd has not made port {self.name} in time; is it running?"
            )
        ids, version = row.external_ids, row.external_ids.get(IFACE_ID_VER)
        shown = f"ofport {row.ofport[0]}, {INSTALLED} {ids.get(INSTALLED, 'not set')}"
        bound = f", with no {IFACE_ID_VER} but {version}" if version else ""
        raise DeadlineExceeded(
            f"ovs.ovn: logical port {self.iface_id} was not installed in time (Interface "
            f"{self.name}: {shown}); is ovn-controller running and connected to "
            f"{self.remote or 'ovn-remote, which is not set'}, and is there a logical switch port "
            f"{self.iface_id}{bound}, which no other chassis is to have?"
        )
