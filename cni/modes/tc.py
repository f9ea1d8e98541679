"""Mode tc: what reaches the pod's interface is redirected to a tap, and back.

The pod's interface is vmlink's own veth or, chained, that of any other plugin.
"""

from __future__ import annotations

from cni.attach.context import Node
from cni.attach.facts import Facts
from cni.attach.plan import Plan, Step
from cni.config.mode_rules import ModeRules
from cni.config.network import NetConf
from cni.config.uplinks import Chained, OvsUplink
from cni.errors import NotReady, VmlinkError
from cni.kernel import redirect, tuntap
from cni.modes import ports
from cni.modes.base import Mode
from cni.modes.pod_veth import host_interface, pod_interface, veth_plan
from cni.modes.steps.chained import ChainedInterface
from cni.modes.steps.guard import GuardSteps, addresses_of, guard_steps, require_guard
from cni.modes.steps.limits import RedirectLimits, rates_of
from cni.modes.steps.links import Nic, TapMac
from cni.modes.steps.redirect import Redirect
from cni.modes.steps.tap import Tap as TapStep
from cni.spec.types import AttachmentKey, Interface
from cni.vmm.device import Device


class Tc(Mode):
    """A tap behind the pod's interface, joined to it by redirects both ways."""

    name = "tc"
    rules = ModeRules(
        uplinks=("linux", "ovs", "chained"),
        # Kata's runtimes put a tap behind an interface themselves: a plain veth is left to them.
        runtimes={"any": "tc", "kata": "veth", "kata-go": "veth"},
        keys=frozenset({"tap", "tap.name"}),
        result_styles=("plain", "tc-redirect-tap"),
        guards=("linux", "ovs", "chained"),
    )

    def plan(self, key: AttachmentKey, conf: NetConf) -> Plan:
        guard = _guard(key, conf)
        if isinstance(conf.uplink, Chained):
            behind = _behind(key, conf, guard, lasting=True)
            return Plan((), (ChainedInterface(key.ifname), *behind, *guard.open))
        behind = _behind(key, conf, guard, lasting=False)
        return veth_plan(key, conf, silenced=True, behind=behind, end=guard.open)

    def interfaces(
        self, key: AttachmentKey, conf: NetConf, facts: Facts, netns: str
    ) -> tuple[Interface, ...]:
        tap = Interface(_tap_name(key, conf), facts[TapMac].mac, facts[Nic].mtu, netns)
        if isinstance(conf.uplink, Chained):
            return (tap,)
        return (pod_interface(key, facts, netns), host_interface(key, facts), tap)

    def device(self, key: AttachmentKey, conf: NetConf, facts: Facts, netns: str) -> Device:
        return Device(
            id=key.tap_link,
            kind="tap",
            netns=netns,
            tap=_tap_name(key, conf),
            mac=facts[Nic].mac,
            mtu=facts[Nic].mtu,
            queues=conf.queues,
        )

    def ready(self, conf: NetConf, node: Node) -> None:
        tuntap.require_tun()
        ports.require_limits(conf, by_kernel=True)
        ports.require_switch(conf, node)
        try:
            redirect.choose(conf.redirect)
        except VmlinkError as e:
            raise NotReady(e.msg, e.details) from e
        require_guard(conf.guard, conf.redirect)


def _guard(key: AttachmentKey, conf: NetConf) -> GuardSteps:
    return guard_steps(
        conf.guard,
        _tap_name(key, conf),
        in_pod=True,
        engine=conf.redirect,
        vlans=conf.uplink.trunk if isinstance(conf.uplink, OvsUplink) else (),
        chained=addresses_of(conf.prev, key.ifname),
    )


def _behind(
    key: AttachmentKey, conf: NetConf, guard: GuardSteps, lasting: bool
) -> tuple[Step, ...]:
    """Return the steps behind the pod's interface.

    On one that is `lasting`, another plugin's, the limits are always a step: a DEL that knows of no
    bandwidth removes them as well.
    """
    tap = TapStep(_tap_name(key, conf), conf.queues, conf.tap.owner, conf.tap.group)
    rates = rates_of(conf.bandwidth)
    limits = RedirectLimits(key.ifname, tap.name, lasting, rates)
    wired = Redirect(key.ifname, tap.name, conf.redirect, lasting)
    return (*guard.take, tap, *((limits,) if lasting or any(rates) else ()), wired)


def _tap_name(key: AttachmentKey, conf: NetConf) -> str:
    return conf.tap.name or key.tap_link
