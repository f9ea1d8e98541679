"""Mode vhostuser: the guest's queues are shared with Open vSwitch's DPDK datapath.

The VMM listens on a socket in a directory of the attachment's own and ovs-vswitchd connects, so
traffic returns by itself when either starts anew. Source: Open vSwitch manual, "DPDK vHost User
Ports"; ovs-vswitchd.conf.db(5).
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cni.attach.context import Context, Node
from cni.attach.plan import Plan, Step
from cni.config.network import NetConf
from cni.config.readers import SUN_PATH
from cni.config.uplinks import OvsUplink
from cni.errors import BadConfig, CheckFailed
from cni.modes.steps import common, kata, leased_addresses, switch
from cni.modes.steps.device_info import DeviceInfo
from cni.modes.steps.host_tap import Placeholder
from cni.modes.steps.links import socket_path
from cni.ovs.port_ops import VHOSTUSER, VHOSTUSER_LISTENING
from cni.spec.types import AttachmentKey, Interface
from cni.vmm.device import Device


@dataclass(frozen=True)
class SocketDirectory(Step):
    """Where the VMM makes its socket: for `owner` alone, and `group` if there is one."""

    mac: str = field(compare=False)
    owner: int | None
    group: int | None

    def do(self, cx: Context) -> None:
        directory, path = self._path(cx), socket_path(cx)
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
        cx.facts.update(mac=self.mac, socket=path)

    def bind(self, cx: Context) -> None:
        cx.facts["mac"] = self.mac

    def undo(self, cx: Context) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self._path(cx))

    def check(self, cx: Context) -> None:
        if not os.path.isdir(self._path(cx)):
            raise CheckFailed(f"{self._path(cx)}: expected a directory, found nothing")

    @staticmethod
    def _path(cx: Context) -> str:
        return os.path.dirname(socket_path(cx))


class VhostUser:
    name = "vhostuser"

    def plan(self, key: AttachmentKey, conf: NetConf) -> Plan:
        assert isinstance(conf.uplink, OvsUplink)
        mac, listening = conf.mac or key.mac(), conf.runtime == "kata-go"
        kind = VHOSTUSER_LISTENING if listening else VHOSTUSER
        before, port, ready = switch.port_steps(conf.uplink, key.vhost_port, conf, kind)
        bind: list[Step] = [*leased_addresses.addresses(conf)]
        if self.in_pod(conf):
            bind += [Placeholder(key.ifname), common.Configure(key.ifname, True)]
        if conf.device_info:
            bind.append(DeviceInfo(conf.device_info, "client" if listening else "server"))
        if listening:
            there = kata.SwitchSocket(mac, key.vhost_port)
            return Plan((before, there, *port), (*bind, ready, kata.FoundSocket(key.vhost_port)))
        directory = SocketDirectory(mac, conf.tap.owner, conf.tap.group)
        entry = (kata.DanEntry("", conf.queues),) if conf.runtime == "kata" else ()
        return Plan((before, directory, *port), (*bind, ready, *entry))

    def in_pod(self, conf: NetConf) -> bool:
        # Kata in Go looks for the socket by the addresses that it finds in the namespace.
        return conf.placeholder or conf.runtime == "kata-go"

    def interfaces(
        self, key: AttachmentKey, conf: NetConf, facts: dict[str, Any], netns: str
    ) -> tuple[Interface, ...]:
        return (Interface(key.ifname, facts["mac"], facts["mtu"], netns, facts["socket"]),)

    def device(
        self, key: AttachmentKey, conf: NetConf, facts: dict[str, Any], netns: str
    ) -> Device | None:
        if conf.runtime == "kata-go":  # which finds the socket itself
            return None
        return Device(
            id=key.vhost_port,
            kind="vhostuser",
            path=facts["socket"],
            mac=facts["mac"],
            mtu=facts["mtu"],
            queues=conf.queues,
            offload=facts["offload"],
        )

    def ready(self, conf: NetConf, node: Node) -> None:
        assert isinstance(conf.uplink, OvsUplink)
        switch.ready(node, conf.uplink, dpdk=True)
        if conf.runtime == "kata-go":
            kata.ready(node)
