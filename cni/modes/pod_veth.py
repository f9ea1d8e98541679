"""The pod's interface as a veth, which modes tc and veth share."""

from __future__ import annotations

from cni.attach.facts import Facts
from cni.attach.plan import Plan, Step
from cni.config.network import NetConf
from cni.modes.ports import on_switch, port_steps, steps, vlan_of
from cni.modes.steps.addresses import address_steps
from cni.modes.steps.announcement import announcements
from cni.modes.steps.configure import Configure
from cni.modes.steps.links import Nic
from cni.modes.steps.ovs_bridge import SoftwareChecksums
from cni.modes.steps.veth import Veth
from cni.spec.types import AttachmentKey, Bandwidth, Interface


def veth_plan(
    key: AttachmentKey,
    conf: NetConf,
    *,
    silenced: bool,
    limits: Bandwidth | None = None,
    behind: tuple[Step, ...] = (),
    end: tuple[Step, ...] = (),
) -> Plan:
    """Return the plan of a veth with `behind` it what is in the pod's namespace.

    `silenced`: the interface is the guest's, and its namespace claims no link-local address.
    `limits` are those that the switch is to keep.
    """
    port = port_steps(conf, key.host_link, limits=limits)
    veth = Veth(key.ifname, conf.mac or key.mac(), conf.mtu, vlan_of(conf))
    checksums = (SoftwareChecksums(key.ifname),) if on_switch(conf) else ()
    bind = steps(
        (veth,),
        port.after,
        behind,
        address_steps(conf),
        port.addresses,
        (Configure(key.ifname, silenced),),
        checksums,
        port.end,
        end,
        announcements(conf, key.ifname),
    )
    return Plan(port.before, bind)


def pod_interface(key: AttachmentKey, facts: Facts, netns: str) -> Interface:
    """Return the pod's interface for the CNI result."""
    nic = facts[Nic]
    return Interface(key.ifname, nic.mac, nic.mtu, netns)


def host_interface(key: AttachmentKey, facts: Facts) -> Interface:
    """Return the switch's end of the veth for the CNI result."""
    return Interface(key.host_link, key.port_mac, facts[Nic].mtu)
