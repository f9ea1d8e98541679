"""Records and prepared ports of the formats before, as JSON of today's.

Format 1 (vmlink 0.1; a record in two lines, or in one) had no number, its plan under `plan`, its
prepared port under `kit`, and all facts in one flat object. A vmlinkd that is upgraded under living
pods reads what the former one wrote; new files are written in today's format alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STEPS = {
    "Given": "LeasedAddresses",
    "Unheard": "IgnoreHostStack",
    "KnownGateway": "GatewayNeighbour",
    "FoundSocket": "KataSocketLink",
    "HostTap": "SwitchTap",
    "Chain": "ChainedInterface",
    "FinishedChecksums": "SoftwareChecksums",
    "Shape": "RedirectLimits",
    "ShapeLink": "LinkLimits",
}
# The facts of today, and where format 1 had their fields.
_FACTS = {
    "BridgeIndex": {"index": "bridge_index"},
    "PortMtu": {"mtu": "mtu"},
    "Nic": {"mac": "mac", "mtu": "mtu"},
    "TapMac": {"mac": "tap_mac"},
    "Datapath": {"userspace": "userspace", "offload": "offload"},
    "VhostSocket": {"path": "socket"},
    "MacvtapDevice": {
        "ifindex": "ifindex",
        "device_number": "device_number",
        "node_made": "node_made",
    },
    "RedirectEngine": {"name": "redirect"},
    "GatewayMacs": {"entries": "neighbours"},
    "DanFile": {"path": "dan_file", "entry": "dan_entry"},
    "KataSocket": {"path": "kata_socket"},
}


def upgraded(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record in today's format. Raises KeyError, TypeError or AttributeError for none."""
    if "format" in data:
        return dict(data)
    record = {key: value for key, value in data.items() if key not in ("plan", "kit")}
    record |= {"format": 1, "begun": 0}
    record["steps"] = {half: [_step(s) for s in data["plan"][half]] for half in ("prepare", "bind")}
    record["facts"] = facts(data.get("facts", {})) | _gateway(record)
    record["port"] = port(data["kit"]) if data.get("kit") else {}
    return record


def _gateway(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the gateway's addresses, which format 1 did not keep, from the CNI result."""
    if all(step["step"] != "Gateway" for half in record["steps"].values() for step in half):
        return {}
    ips = [ip for ip in record.get("result", {}).get("ips", ()) if ip.get("gateway")]
    cidrs = [f"{ip['gateway']}/{ip['address'].partition('/')[2]}" for ip in ips]
    return {"GatewayAddresses": {"cidrs": cidrs}} if cidrs else {}


def port(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a prepared port in today's format."""
    if "format" in data:
        return dict(data)
    prepare = [_step(step) for step in data.get("prepare", ())]
    return {**data, "format": 1, "prepare": prepare, "facts": facts(data.get("facts", {}))}


def facts(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that format 1 kept in one flat object."""
    return {
        name: {field: flat[key] for field, key in keys.items()}
        for name, keys in _FACTS.items()
        if all(key in flat for key in keys.values())
    }


def _step(data: Mapping[str, Any]) -> dict[str, Any]:
    return {**data, "step": _STEPS.get(data["step"], data["step"])}
