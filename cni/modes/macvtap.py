"""Mode macvtap: the guest's NIC is a macvtap on a NIC of the host or on another plugin's interface.

On a NIC, the macvtap is itself the pod's interface. Chained, the interface stays as it is, and a
macvtap of mode passthru on top of it has its MAC and all of its traffic.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from cni.attach.context import Node
from cni.attach.plan import Plan
from cni.config.network import NetConf
from cni.config.uplinks import MasterUplink
from cni.errors import NotReady
from cni.kernel import redirect, rtnl_encode
from cni.kernel.macvtap import node_path
from cni.kernel.netlink import Netlink
from cni.kernel.scratch import in_scratch_namespace
from cni.modes.base import pod_interface
from cni.modes.steps import common
from cni.modes.steps import limits as shape
from cni.modes.steps.macvtap import Divert, MacvtapLink
from cni.spec.types import AttachmentKey, Interface
from cni.vmm.device import Device


class Macvtap:
    name = "macvtap"

    def plan(self, key: AttachmentKey, conf: NetConf) -> Plan:
        access = (conf.queues, conf.tap.owner, conf.tap.group)
        if not isinstance(conf.uplink, MasterUplink):
            tap = MacvtapLink(key.tap_link, key.ifname, True, "passthru", "", 0, *access)
            limits = shape.alone(conf, tap.name, in_pod=True)
            return Plan((), (common.Chain(key.ifname), tap, *limits, Divert(key.ifname, tap.name)))
        mode = conf.macvtap_mode
        mac = conf.mac or ("" if mode == "passthru" else key.mac())
        link = MacvtapLink(key.ifname, conf.uplink.interface, False, mode, mac, conf.mtu, *access)
        addresses = (common.Addresses(),) if conf.ipam else ()
        limits = shape.alone(conf, link.name, in_pod=True)
        return Plan((), (*addresses, link, *limits, common.Configure(key.ifname, silenced=True)))

    def in_pod(self, conf: NetConf) -> bool:
        return True

    def interfaces(
        self, key: AttachmentKey, conf: NetConf, facts: dict[str, Any], netns: str
    ) -> tuple[Interface, ...]:
        if isinstance(conf.uplink, MasterUplink):
            return (pod_interface(key, facts, netns),)
        return (Interface(key.tap_link, facts["mac"], facts["mtu"], netns),)

    def device(
        self, key: AttachmentKey, conf: NetConf, facts: dict[str, Any], netns: str
    ) -> Device:
        return Device(
            id=key.tap_link,
            kind="macvtap",
            netns=netns,
            path=node_path(facts["ifindex"]),
            mac=facts["mac"],
            mtu=facts["mtu"],
            queues=conf.queues,
        )

    def ready(self, conf: NetConf, node: Node) -> None:
        shape.ready(conf)
        if reason := redirect.supported()["cls_bpf"]:
            raise NotReady(f"the namespace of a macvtap is kept silent by cls_bpf: {reason}")
        _require_macvtap()
        if isinstance(conf.uplink, MasterUplink):
            _require_up(conf.uplink.interface)


def _require_up(master: str) -> None:
    with Netlink() as netlink:
        link = netlink.link(master)
    if link is None:
        raise NotReady(f"master: there is no interface {master} on this node")
    if not link.up:
        raise NotReady(f"master: {master} is down; set it up")


@cache  # but not the exception: the kernel module may come
def _require_macvtap() -> None:
    if reason := in_scratch_namespace(_try):
        raise NotReady(f"the kernel makes no macvtap: {reason}")


def _try(netlink: Netlink) -> str:
    netlink.batch(rtnl_encode.new_veth("near", "far"))
    near = netlink.index("near") or 0
    # Below the numbers of macvtaps, so that the node is none of theirs.
    made = rtnl_encode.new_macvtap("tried", index=8191, link=near, mode="bridge")
    (error,) = netlink.attempt(made)
    return error.msg if error else ""
