"""Mode tap: the guest's tap is itself the port of the switch; the pod's namespace stays empty."""

from __future__ import annotations

from cni.attach.context import Context, Node
from cni.attach.facts import Facts
from cni.attach.plan import Plan
from cni.config.mode_rules import ModeRules
from cni.config.network import NetConf
from cni.kernel import tuntap
from cni.modes import ports
from cni.modes.steps.addresses import address_steps
from cni.modes.steps.configure import Configure
from cni.modes.steps.guard import guard_steps, require_guard
from cni.modes.steps.kata import dan_steps
from cni.modes.steps.links import Nic, TapMac, remove_host_link
from cni.modes.steps.ovs_bridge import Datapath
from cni.modes.steps.placeholder import Placeholder
from cni.modes.steps.switch_tap import SwitchTap
from cni.spec.types import AttachmentKey, Interface
from cni.vmm.device import Device


class Tap(ports.PoolableMode):
    """A tap in the host's namespace, with a placeholder in the pod's on request."""

    name = "tap"
    rules = ModeRules(
        uplinks=("linux", "ovs"),
        runtimes={"any": "tap", "kata": "tap"},
        keys=frozenset({"tap", "tap.name", "placeholder"}),
        addressless=frozenset({"kata"}),
        poolable=True,
        guards=("linux",),
    )

    def plan(self, key: AttachmentKey, conf: NetConf) -> Plan:
        name, mac, access = _tap_name(key, conf), conf.mac or key.mac(), conf.tap
        port = ports.port_steps(conf, name, limits=conf.bandwidth)
        tap = SwitchTap(
            name, conf.queues, access.owner, access.group, mac, conf.mtu, ports.vlan_of(conf)
        )
        guard = guard_steps(conf.guard, name, in_pod=False)
        shown = (Placeholder(key.ifname), Configure(key.ifname, silenced=True))
        bind = ports.steps(
            ports.link_limits(conf, name),
            address_steps(conf),
            port.addresses,
            shown if conf.placeholder else (),
            ports.gateway_neighbours(conf, key.ifname if conf.placeholder else ""),
            port.end,
            guard.open,
            dan_steps(name, conf.queues) if conf.runtime == "kata" else (),
        )
        return Plan((*port.before, *guard.take, tap, *port.after), bind)

    def in_pod(self, conf: NetConf) -> bool:
        return conf.placeholder

    def interfaces(
        self, key: AttachmentKey, conf: NetConf, facts: Facts, netns: str
    ) -> tuple[Interface, ...]:
        nic = facts[Nic]
        tap = Interface(_tap_name(key, conf), facts[TapMac].mac, nic.mtu)
        return (Interface(key.ifname, nic.mac, nic.mtu, netns), tap)

    def device(self, key: AttachmentKey, conf: NetConf, facts: Facts, netns: str) -> Device:
        datapath = facts.get(Datapath)
        return Device(
            id=key.tap_link,
            kind="tap",
            tap=_tap_name(key, conf),
            mac=facts[Nic].mac,
            mtu=facts[Nic].mtu,
            queues=conf.queues,
            offload=datapath.offload if datapath else True,
        )

    def ready(self, conf: NetConf, node: Node) -> None:
        tuntap.require_tun()
        ports.require_limits(conf, by_kernel=not ports.on_switch(conf))
        ports.require_switch(conf, node)
        require_guard(conf.guard)

    def sweep(self, cx: Context) -> None:
        remove_host_link(cx, cx.key.tap_port)


def _tap_name(key: AttachmentKey, conf: NetConf) -> str:
    return conf.tap.name or key.tap_port
