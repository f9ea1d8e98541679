"""The file that says to the pod's other programs which device they got.

Source: Network Plumbing Working Group, "Device Information Specification" 1.1.0.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.plan import Kinds, Step
from cni.errors import IOFailure
from cni.modes.steps.vhost_socket import VhostSocket


@dataclass(frozen=True)
class DeviceInfo(Step):
    """The file `path`, which the runtime chose. `role` is the VMM's: "server" or "client"."""

    needs: ClassVar[Kinds] = (VhostSocket,)
    path: str
    role: str = "server"

    def do(self, cx: Context) -> None:
        device = {"mode": self.role, "path": cx.facts[VhostSocket].path}
        text = json.dumps({"type": "vhost-user", "version": "1.1.0", "vhost-user": device})
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
            with open(self.path, "w") as f:
                f.write(text + "\n")
        except OSError as e:
            raise IOFailure(
                f"runtimeConfig.CNIDeviceInfoFile: cannot write {self.path}: {e.strerror}"
            ) from e

    def undo(self, cx: Context) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.path)
