"""Mode macvtap: the guest's NIC is a macvtap on a NIC of the host or on another plugin's interface.

On a NIC, the macvtap is itself the pod's interface. Chained, the interface stays as it is, and a
macvtap of mode passthru on top of it has its MAC and all of its traffic.
"""

from __future__ import annotations

from functools import cache

from cni.attach.context import Node
from cni.attach.facts import Facts
from cni.attach.plan import Plan, Step
from cni.config.mode_rules import ModeRules
from cni.config.network import NetConf
from cni.config.uplinks import MasterUplink
from cni.errors import NotReady
from cni.kernel import redirect, rtnl_encode
from cni.kernel.macvtap import node_path
from cni.kernel.netlink import Netlink
from cni.kernel.scratch import in_scratch_namespace
from cni.modes import ports
from cni.modes.base import Mode
from cni.modes.pod_veth import pod_interface
from cni.modes.steps.addresses import address_steps
from cni.modes.steps.announcement import announcements
from cni.modes.steps.chained import ChainedInterface
from cni.modes.steps.configure import Configure
from cni.modes.steps.guard import addresses_of, guard_steps, require_guard
from cni.modes.steps.limits import LinkLimits, rates_of
from cni.modes.steps.links import Nic
from cni.modes.steps.macvtap import MacvtapDevice, MacvtapLink
from cni.modes.steps.redirect import Divert
from cni.spec.types import AttachmentKey, Interface
from cni.vmm.device import Device


class Macvtap(Mode):
    """A macvtap in the pod's namespace, which a VMM opens by its node in /dev."""

    name = "macvtap"
    rules = ModeRules(
        uplinks=("master", "chained"),
        runtimes={"any": "macvtap", "kata-go": "macvtap"},
        keys=frozenset({"tap", "macvtap"}),
        guards=("master", "chained"),
    )

    def plan(self, key: AttachmentKey, conf: NetConf) -> Plan:
        if isinstance(conf.uplink, MasterUplink):
            return _on_nic(key, conf, conf.uplink.interface)
        access = (conf.queues, conf.tap.owner, conf.tap.group)
        tap = MacvtapLink(key.tap_link, key.ifname, True, "passthru", "", 0, *access)
        chained, divert = ChainedInterface(key.ifname), Divert(key.ifname, tap.name)
        guard = guard_steps(
            conf.guard,
            tap.name,
            in_pod=True,
            egress=True,
            chained=addresses_of(conf.prev, key.ifname),
        )
        limits = _limits(conf, tap.name)
        return Plan((), (chained, *guard.take, tap, limits, divert, *guard.open))

    def interfaces(
        self, key: AttachmentKey, conf: NetConf, facts: Facts, netns: str
    ) -> tuple[Interface, ...]:
        if isinstance(conf.uplink, MasterUplink):
            return (pod_interface(key, facts, netns),)
        return (Interface(key.tap_link, facts[Nic].mac, facts[Nic].mtu, netns),)

    def device(self, key: AttachmentKey, conf: NetConf, facts: Facts, netns: str) -> Device:
        return Device(
            id=key.tap_link,
            kind="macvtap",
            netns=netns,
            path=node_path(facts[MacvtapDevice].ifindex),
            mac=facts[Nic].mac,
            mtu=facts[Nic].mtu,
            queues=conf.queues,
        )

    def ready(self, conf: NetConf, node: Node) -> None:
        ports.require_limits(conf, by_kernel=True)
        if reason := redirect.supported()["cls_bpf"]:
            raise NotReady(f"frames cannot be kept from a macvtap's namespace by cls_bpf: {reason}")
        _require_macvtap()
        require_guard(conf.guard)
        if isinstance(conf.uplink, MasterUplink):
            _require_up(conf.uplink.interface)


def _on_nic(key: AttachmentKey, conf: NetConf, nic: str) -> Plan:
    mode, access = conf.macvtap_mode, (conf.queues, conf.tap.owner, conf.tap.group)
    mac = conf.mac or ("" if mode == "passthru" else key.mac())
    link = MacvtapLink(key.ifname, nic, False, mode, mac, conf.mtu, *access)
    limits, configure = _limits(conf, link.name), Configure(key.ifname, silenced=True)
    guard = guard_steps(conf.guard, link.name, in_pod=True, egress=True)
    last = (*ports.scanned_by_kata(conf), *announcements(conf, key.ifname))
    bind = (*address_steps(conf), *guard.take, link, limits, configure, *guard.open, *last)
    return Plan((), bind)


def _limits(conf: NetConf, link: str) -> Step:
    return LinkLimits(link, True, rates_of(conf.bandwidth))


def _require_up(master: str) -> None:
    with Netlink() as netlink:
        link = netlink.link(master)
    if link is None:
        raise NotReady(f"master: there is no interface {master} on this node; name another")
    if not link.up:
        raise NotReady(f"master: {master} is down; set it up")


@cache  # but not the exception: the kernel module may be loaded later
def _require_macvtap() -> None:
    if reason := in_scratch_namespace(_try):
        raise NotReady(f"the kernel makes no macvtap: {reason}; load the module macvtap")


def _try(netlink: Netlink) -> str:
    netlink.batch(rtnl_encode.new_veth("near", "far"))
    near = netlink.index("near") or 0
    # Below the numbers of macvtaps, so that the node is none of theirs.
    made = rtnl_encode.new_macvtap("tried", index=8191, link=near, mode="bridge")
    (error,) = netlink.attempt(made)
    return error.msg if error else ""
