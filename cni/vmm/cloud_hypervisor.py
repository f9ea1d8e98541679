"""Hot plug of a NIC in Cloud Hypervisor, by HTTP on its --api-socket.

Sources: cloud-hypervisor.yaml (OpenAPI), vm.add-net and vm.remove-device; the documentation of the
crate micro_http: descriptors come with the first byte of the request.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Sequence
from typing import Any

from cni.errors import VmmRefused
from cni.vmm import descriptors
from cni.vmm.device import Device
from cni.vmm.formats import cloud_hypervisor

_LIMIT = 1 << 20


def add(path: str, device: Device, seconds: float) -> None:
    """Plug in a NIC by the API socket `path`, within so many seconds.

    Raises VmmRefused, or as `descriptors.open_queues`. Nothing is left then: the VMM closes the
    descriptors that it does not use.
    """
    fds, vhost_fds = descriptors.open_queues(device)
    try:
        body = cloud_hypervisor.by_descriptors(device)
        _put(path, "vm.add-net", body, seconds, fds)
    finally:
        descriptors.close(fds + vhost_fds)


def remove(path: str, device: Device, seconds: float) -> None:
    """Ask the guest to release a NIC. Raises VmmRefused.

    The guest does so later; the API does not say when.
    """
    _put(path, "vm.remove-device", {"id": device.id}, seconds)


def _put(
    path: str, verb: str, body: dict[str, Any], seconds: float, fds: Sequence[int] = ()
) -> None:
    data = json.dumps(body).encode()
    head = (
        f"PUT /api/v1/{verb} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as conn:
            conn.settimeout(seconds)
            conn.connect(path)
            request = head.encode() + data
            sent = socket.send_fds(conn, [request], list(fds))
            if rest := request[sent:]:
                conn.sendall(rest)
            with http.client.HTTPResponse(conn, method="PUT") as response:
                response.begin()
                _require_done(response, verb)
    except (OSError, http.client.HTTPException) as e:
        raise VmmRefused(f"Cloud Hypervisor at {path}: {verb}: {e or type(e).__name__}") from e


def _require_done(response: http.client.HTTPResponse, verb: str) -> None:
    if response.status not in (200, 204):
        reason = response.read(_LIMIT).decode(errors="replace").strip()
        raise VmmRefused(f"Cloud Hypervisor refused {verb}: {response.status} {reason}".rstrip())
