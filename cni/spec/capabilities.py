"""runtimeConfig: what a runtime passes to a plugin that has declared the capability. Pure.

Plugins in Go read keys without regard to case, and containerd's go-cni relies on that: it writes
the names of its structs' fields, such as `IngressRate`. Source: CNI conventions, "Capabilities".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# How containerd and CRI-O pass a pod's annotations. Neither passes the runtime class.
POD_ANNOTATIONS = "io.kubernetes.cri.pod-annotations"

_KEYS: dict[str, tuple[str, ...]] = {  # and those of the objects below them
    "mac": (),
    "ips": (),
    "bandwidth": ("ingressRate", "ingressBurst", "egressRate", "egressBurst"),
    "dns": ("servers", "searches", "options"),
    "ipRanges": ("subnet", "rangeStart", "rangeEnd", "gateway"),
    "deviceID": (),
    "CNIDeviceInfoFile": (),
    POD_ANNOTATIONS: (),
}


def spelled(runtime: Any) -> Any:
    """Return runtimeConfig with the keys that vmlink knows as the conventions spell them."""
    if not isinstance(runtime, dict):
        return runtime
    found = _renamed(runtime, _KEYS)
    return {key: _inner(value, _KEYS.get(key, ())) for key, value in found.items()}


def _inner(value: Any, names: tuple[str, ...], lists: int = 2) -> Any:
    if names and isinstance(value, dict):
        return _renamed(value, names)
    if names and lists and isinstance(value, list):  # ipRanges: range sets, and ranges in them
        return [_inner(item, names, lists - 1) for item in value]
    return value


def _renamed(data: Mapping[str, Any], names: Any) -> dict[str, Any]:
    spelling = {name.lower(): name for name in names}
    return {spelling.get(key.lower(), key): value for key, value in data.items()}
