"""What vmlinkd reads of the database, and no more: each further column is work for every change.

Source: ovs-vswitchd.conf.db(5). Conditions: ovsdb-server(7), section "Monitor Cond".
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from cni.spec.types import AttachmentKey

NAME = "Open_vSwitch"
OWNER, CONTAINER, IFNAME = "vmlink-owner", "vmlink-container", "vmlink-ifname"
OWNED = ("Port", "Interface", "QoS", "Queue")  # the tables with rows of ours

_KIT = re.compile(r"vl[tu]([0-9a-f]{12})")

_MAP = {"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}}
_STRING, _BOOLEAN = {"type": "string"}, {"type": "boolean"}
_NUMBER = {"type": {"key": "integer", "min": 0, "max": 1}}
_NUMBERS = {"type": {"key": "integer", "min": 0, "max": 4096}}
_COLUMNS: dict[str, dict[str, Any]] = {
    "Open_vSwitch": {
        "dpdk_initialized": _BOOLEAN,
        "other_config": _MAP,
        "external_ids": _MAP,
    },
    "Bridge": {"name": _STRING, "datapath_type": _STRING},
    "Port": {"name": _STRING, "external_ids": _MAP, "tag": _NUMBER, "trunks": _NUMBERS},
    "Interface": {
        "name": _STRING,
        "external_ids": _MAP,
        "ofport": _NUMBER,
        "error": {"type": {"key": "string", "min": 0, "max": 1}},
    },
    "QoS": {"external_ids": _MAP},
    "Queue": {"external_ids": _MAP},
}


def schema() -> dict[str, Any]:
    """In the form of RFC 7047, section 3.2, for python-ovs."""
    tables = {name: {"columns": columns} for name, columns in _COLUMNS.items()}
    return {"name": NAME, "version": "8.0.0", "tables": tables}


def owned_by(owner: str) -> list[Any]:
    """The condition for the rows of one vmlinkd."""
    return [["external_ids", "includes", ["map", [[OWNER, owner]]]]]


def key_of(row: Any) -> AttachmentKey | None:
    """Whose row it is; a port that was the pool's has the kit in its name."""
    ids = row.external_ids
    if CONTAINER not in ids or IFNAME not in ids:
        return None
    key = AttachmentKey(ids[CONTAINER], ids[IFNAME])
    kit = _KIT.fullmatch(getattr(row, "name", ""))
    return replace(key, kit=kit[1]) if kit and kit[1] != key.digest else key
