"""libvirt: the element <interface> of a domain.

Source: libvirt.org, "Domain XML format", "Generic ethernet connection" and "vhost-user interface".
"""

from __future__ import annotations

from xml.sax.saxutils import quoteattr

from cni.errors import BadDevice
from cni.vmm.device import Device

_OFFLOADS = "csum gso tso4 tso6 ecn ufo".split()


def interface(device: Device) -> str:
    """The XML of one NIC, a document in one line.

    Raises BadDevice for a tap that is not in the namespace of libvirtd.
    """
    lines = [f"<mac address={quoteattr(device.mac)}/>"]
    if device.kind == "vhostuser":
        kind = "vhostuser"
        lines.append(f"<source type='unix' path={quoteattr(device.path)} mode='server'/>")
    elif device.netns:
        raise BadDevice(
            f"{device.id}: libvirt opens a link by its name, in its own namespace, and this one is "
            "in the pod's; use mode tap or vhostuser"
        )
    else:
        kind = "ethernet"
        lines.append(f"<target dev={quoteattr(device.tap)} managed='no'/>")
        # Not for vhost-user: libvirt would set it on a link, and there is none.
        lines.append(f"<mtu size='{device.mtu}'/>")
    lines += ["<model type='virtio'/>", *_driver(device)]
    return f"<interface type='{kind}'>{''.join(lines)}</interface>"


def _driver(device: Device) -> list[str]:
    queues = f" queues='{device.queues}'" if device.queues > 1 else ""
    if device.offload:
        return [f"<driver{queues}/>"] if queues else []
    off = " ".join(f"{name}='off'" for name in _OFFLOADS)
    return [f"<driver{queues}>", f"<host {off}/>", "</driver>"]
