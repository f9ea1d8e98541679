"""Mode vhostuser: the guest's queues are shared with Open vSwitch's DPDK datapath.

The VMM listens on a socket in a directory of the attachment's own and ovs-vswitchd connects, so
traffic returns by itself when either is restarted. Source: Open vSwitch manual, "DPDK vHost User
Ports"; ovs-vswitchd.conf.db(5).
"""

from __future__ import annotations

from cni.attach.context import Context, Node
from cni.attach.facts import Facts
from cni.attach.plan import Plan
from cni.config.mode_rules import ModeRules
from cni.config.network import NetConf
from cni.errors import BadConfig, NotReady
from cni.modes import ports
from cni.modes.steps.addresses import address_steps
from cni.modes.steps.configure import Configure
from cni.modes.steps.device_info import DeviceInfo
from cni.modes.steps.kata import KataSocketLink, OneWayIntoKata, dan_steps
from cni.modes.steps.links import Nic
from cni.modes.steps.ovs_bridge import Datapath
from cni.modes.steps.placeholder import Placeholder
from cni.modes.steps.vhost_socket import (
    SocketDirectory,
    SwitchSocket,
    VhostSocket,
    remove_socket_directory,
)
from cni.ovs.port_ops import VHOSTUSER, VHOSTUSER_LISTENING
from cni.spec.types import AttachmentKey, Interface
from cni.vmm.device import Device

_SWITCH_LISTENS = "kata-go"  # the runtime whose QEMU connects to a socket of ovs-vswitchd


class VhostUser(ports.PoolableMode):
    """A socket between the VMM and ovs-vswitchd, with a placeholder in the pod on request."""

    name = "vhostuser"
    rules = ModeRules(
        uplinks=("ovs",),
        runtimes=dict.fromkeys(("any", "kata", "kata-go"), "vhostuser"),
        keys=frozenset({"vhostuser", "placeholder"}),
        addressless=frozenset({"kata"}),
        poolable=True,
    )

    def plan(self, key: AttachmentKey, conf: NetConf) -> Plan:
        mac, listening = conf.mac or key.mac(), conf.runtime == _SWITCH_LISTENS
        kind = VHOSTUSER_LISTENING if listening else VHOSTUSER
        port = ports.port_steps(conf, key.vhost_port, kind, conf.bandwidth)
        shown = (Placeholder(key.ifname), Configure(key.ifname, silenced=True))
        role = "client" if listening else "server"
        bind = ports.steps(
            address_steps(conf),
            shown if self.in_pod(conf) else (),
            (DeviceInfo(conf.device_info, role),) if conf.device_info else (),
            port.end,
            (KataSocketLink(key.vhost_port), OneWayIntoKata(False)) if listening else (),
            dan_steps("", conf.queues) if conf.runtime == "kata" else (),
        )
        socket = (
            SwitchSocket(mac, key.vhost_port)
            if listening
            else SocketDirectory(mac, conf.tap.owner, conf.tap.group)
        )
        return Plan((*port.before, socket, *port.after), bind)

    def in_pod(self, conf: NetConf) -> bool:
        # Kata in Go looks for the socket by the addresses that it finds in the namespace.
        return conf.placeholder or conf.runtime == _SWITCH_LISTENS

    def interfaces(
        self, key: AttachmentKey, conf: NetConf, facts: Facts, netns: str
    ) -> tuple[Interface, ...]:
        nic = facts[Nic]
        return (Interface(key.ifname, nic.mac, nic.mtu, netns, facts[VhostSocket].path),)

    def device(self, key: AttachmentKey, conf: NetConf, facts: Facts, netns: str) -> Device | None:
        if conf.runtime == _SWITCH_LISTENS:  # the runtime finds the socket itself
            return None
        return Device(
            id=key.vhost_port,
            kind="vhostuser",
            path=facts[VhostSocket].path,
            mac=facts[Nic].mac,
            mtu=facts[Nic].mtu,
            queues=conf.queues,
            offload=facts[Datapath].offload,
        )

    def ready(self, conf: NetConf, node: Node) -> None:
        ports.require_switch(conf, node, dpdk=True)
        if conf.runtime == _SWITCH_LISTENS:
            try:
                node.ovs.vhost_directory()
            except BadConfig as e:
                raise NotReady(e.msg) from e

    def sweep(self, cx: Context) -> None:
        remove_socket_directory(cx)
