"""The columns that vmlinkd reads: no more, since a change of any costs work in every vmlinkd.

Source: ovs-vswitchd.conf.db(5); for conditions ovsdb-server(7), section "Monitor Cond".
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from cni.spec.types import AttachmentKey

NAME = "Open_vSwitch"
OWNER, CONTAINER, IFNAME = "vmlink-owner", "vmlink-container", "vmlink-ifname"
OWNED = ("Port", "Interface", "QoS", "Queue")  # tables that have rows of ours

_PREPARED = re.compile(r"vl[tu]([0-9a-f]{12})")

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
    """Return them in the form of RFC 7047, section 3.2, for python-ovs."""
    tables = {name: {"columns": columns} for name, columns in _COLUMNS.items()}
    return {"name": NAME, "version": "8.0.0", "tables": tables}


def owned_by(owner: str) -> list[Any]:
    """Return the condition by which only the rows of one vmlinkd are monitored."""
    return [["external_ids", "includes", ["map", [[OWNER, owner]]]]]


def key_of(row: Any) -> AttachmentKey | None:
    """Return the attachment that a row belongs to; None when it is not marked as ours.

    A port that was prepared ahead keeps its name, which has other digits than the attachment's.
    """
    ids = row.external_ids
    if CONTAINER not in ids or IFNAME not in ids:
        return None
    key = AttachmentKey(ids[CONTAINER], ids[IFNAME])
    prepared = _PREPARED.fullmatch(getattr(row, "name", ""))
    return replace(key, prepared=prepared[1]) if prepared and prepared[1] != key.digest else key
