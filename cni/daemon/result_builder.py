"""What a finished ADD returns: the CNI result for the runtime, the device for the VMM."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from cni.attach.context import Context
from cni.config.mode_rules import PLAIN
from cni.config.network import NetConf
from cni.modes.base import Mode
from cni.modes.steps.kata import gateway_macs
from cni.modes.steps.links import Nic
from cni.spec.types import Interface, Result
from cni.vmm.device import promised


def build_result(mode: Mode, conf: NetConf, cx: Context, netns: str) -> Result:
    """Return the mode's links and the addresses, in the style that was asked for."""
    made = mode.interfaces(cx.key, conf, cx.facts, netns)
    if conf.result_style == PLAIN:
        made = _with_one_sandbox(made, cx.key.ifname)
    if conf.prev:
        prev = _with_pod(conf.prev, cx, netns)
        interfaces, dns = prev.interfaces + made, dict(conf.dns) or prev.dns
        result = replace(prev, interfaces=interfaces, dns=dns)
    else:
        addresses = cx.addresses()
        ips = tuple(replace(ip, interface=0) for ip in addresses.ips)
        result = Result(made, ips, addresses.routes, dict(conf.dns) or addresses.dns)
    if conf.result_style == "tc-redirect-tap":
        return _tc_redirect_tap(result, made, cx)
    return result


def _with_one_sandbox(made: Iterable[Interface], ifname: str) -> tuple[Interface, ...]:
    """Return the links with a sandbox for the pod's interface alone.

    Multus lists every interface that has one as one of the pod's, and the tap is none.
    """
    return tuple(i if i.name == ifname else replace(i, sandbox="") for i in made)


def build_device(
    mode: Mode, conf: NetConf, cx: Context, result: Result, netns: str
) -> dict[str, Any]:
    """Return the Device as JSON, with the pod's addresses and routes; {} when there is none."""
    device = mode.device(cx.key, conf, cx.facts, netns)
    if device is None:
        return {}
    ips = result.ips_of(result.position_of(cx.key.ifname))
    return promised(device, cx.key.ifname, result, ips, gateway_macs(cx.facts)).to_json()


def _with_pod(prev: Result, cx: Context, netns: str) -> Result:
    """Return prevResult with the pod's interface, which some plugins leave out.

    Without it Multus would take the tap for the pod's.
    """
    if prev.position_of(cx.key.ifname) is not None:
        return prev
    nic, position = cx.facts[Nic], len(prev.interfaces)
    pod = Interface(cx.key.ifname, nic.mac, nic.mtu, netns)
    ips = tuple(replace(ip, interface=position) for ip in prev.ips)
    return replace(prev, interfaces=(*prev.interfaces, pod), ips=ips)


def _tc_redirect_tap(result: Result, made: tuple[Interface, ...], cx: Context) -> Result:
    """Add the pseudo-interface that Firecracker's Go SDK looks for.

    It has the tap's name, the container id for a sandbox, the guest's MAC and every address of the
    pod's interface.
    """
    tap = next(i for i in made if i.name != cx.key.ifname and i.sandbox)
    pseudo = Interface(tap.name, cx.facts[Nic].mac, 0, cx.key.container_id)
    # No address points at what moves: the tap, and the host's end behind it.
    interfaces = (*(i for i in result.interfaces if i is not tap), tap, pseudo)
    ips = result.ips_of(result.position_of(cx.key.ifname))
    guest = tuple(replace(ip, interface=len(interfaces) - 1) for ip in ips)
    return replace(result, interfaces=interfaces, ips=result.ips + guest)
