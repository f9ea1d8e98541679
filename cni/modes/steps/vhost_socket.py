"""The socket of vhost-user: in a directory of the attachment's own, or in the switch's.

Sources: Open vSwitch manual, "DPDK vHost User Ports"; ovs-vswitchd.conf.db(5), vhost-sock-dir.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.facts import Fact
from cni.attach.plan import Kinds, Step
from cni.config.readers import SUN_PATH
from cni.errors import BadConfig, CheckFailed
from cni.modes.steps.links import Nic, PortMtu


@dataclass(frozen=True)
class VhostSocket(Fact):
    """The path of the socket."""

    path: str


class SocketStep(Step):
    """A step that decides the path of the socket, and the MAC of the guest's NIC."""

    needs: ClassVar[Kinds] = (PortMtu,)
    provides: ClassVar[Kinds] = (Nic, VhostSocket)
    mac: str

    def bind(self, cx: Context) -> None:
        cx.facts.put(replace(cx.facts[Nic], mac=self.mac))

    def _provide(self, cx: Context, path: str) -> None:
        cx.facts.put(Nic(self.mac, cx.facts[PortMtu].mtu), VhostSocket(path))


@dataclass(frozen=True)
class SocketDirectory(SocketStep):
    """Where the VMM makes its socket: for `owner` (uid) and, if there is one, `group` (gid)."""

    mac: str = field(compare=False)
    owner: int | None
    group: int | None

    def do(self, cx: Context) -> None:
        path = vmm_socket(cx)
        directory = os.path.dirname(path)
        if len(path.encode()) > SUN_PATH:
            raise BadConfig(
                f"--run-dir: {path} is longer than the {SUN_PATH} bytes of a socket's address; "
                "start vmlinkd with a shorter one"
            )
        os.makedirs(os.path.dirname(directory), mode=0o711, exist_ok=True)
        with suppress(FileExistsError):  # of an attachment whose record was lost
            os.mkdir(directory, 0o700)
        os.chown(directory, self.owner or 0, -1 if self.group is None else self.group)
        os.chmod(directory, 0o700 if self.group is None else 0o770)
        self._provide(cx, path)

    def undo(self, cx: Context) -> None:
        remove_socket_directory(cx)

    def check(self, cx: Context) -> None:
        directory = os.path.dirname(vmm_socket(cx))
        if not os.path.isdir(directory):
            raise CheckFailed(f"{directory}: expected a directory, found nothing")


@dataclass(frozen=True)
class SwitchSocket(SocketStep):
    """The socket on which ovs-vswitchd listens, in its own directory, named as the port is."""

    mac: str = field(compare=False)
    port: str

    def do(self, cx: Context) -> None:
        self._provide(cx, f"{cx.node.ovs.vhost_directory()}/{self.port}")


def vmm_socket(cx: Context) -> str:
    """Return where the VMM makes the socket, in a directory of the attachment's own."""
    return f"{cx.node.run_dir}/vhostuser/{cx.key.port_digits}/sock"


def remove_socket_directory(cx: Context) -> None:
    """Remove the attachment's own directory with what is in it; a missing one is no error."""
    with suppress(FileNotFoundError):
        shutil.rmtree(os.path.dirname(vmm_socket(cx)))
