"""Mode veth: a plain container's interface, for networks that serve containers and VMs."""

from __future__ import annotations

from typing import Any

from cni.config import LinuxUplink, NetConf
from cni.modes.base import host_interface, pod_interface, port_steps
from cni.plan import Plan
from cni.types import AttachmentKey, Interface


class Veth:
    name = "veth"

    def plan(self, key: AttachmentKey, conf: NetConf) -> Plan:
        assert isinstance(conf.uplink, LinuxUplink)
        prepare, bind = port_steps(key, conf, conf.uplink, silenced=False)
        return Plan(prepare, bind)

    def interfaces(
        self, key: AttachmentKey, conf: NetConf, facts: dict[str, Any], netns: str
    ) -> tuple[Interface, ...]:
        return (pod_interface(key, facts, netns), host_interface(key, facts))

    def device(self, key: AttachmentKey, conf: NetConf, facts: dict[str, Any], netns: str) -> None:
        return None

    def ready(self, conf: NetConf) -> None:
        return
