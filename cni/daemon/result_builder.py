"""What a finished ADD tells: the CNI result for the runtime, the device for the VMM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cni.attach.context import Context
from cni.config.network import NetConf
from cni.config.uplinks import Chained
from cni.errors import BadConfig
from cni.modes import MODES
from cni.spec.types import Interface, Result
from cni.vmm.device import promised


def result_of(conf: NetConf, cx: Context, netns: str) -> Result:
    """The result of the mode's links and the addresses, in the style that was asked for."""
    made = MODES[conf.mode].interfaces(cx.key, conf, cx.facts, netns)
    if isinstance(conf.uplink, Chained) and conf.prev:
        result = replace(conf.prev, interfaces=conf.prev.interfaces + made)
    else:
        given = cx.ipam()
        ips = tuple(replace(ip, interface=0) for ip in given.ips)
        result = Result(made, ips, given.routes, dict(conf.dns) or given.dns)
    if conf.result_style == "tc-redirect-tap":
        return _tc_redirect_tap(result, cx)
    return result


def describe(conf: NetConf, cx: Context, result: Result, netns: str) -> dict[str, Any]:
    """The Device as JSON, with the addresses and routes of the pod; {} when there is none."""
    device = MODES[conf.mode].device(cx.key, conf, cx.facts, netns)
    if device is None:
        return {}
    pod = _position(result, cx.key.ifname)
    ips = [ip for ip in result.ips if ip.interface in (pod, None)]
    neighbours = cx.facts.get("neighbours", ())
    return vars(promised(device, cx.key.ifname, result, ips, neighbours))


def _tc_redirect_tap(result: Result, cx: Context) -> Result:
    """The pseudo-interface that Firecracker's Go SDK looks for: it has the tap's name, the
    container id for a sandbox, the guest's MAC and every address of the pod's interface."""
    pod = _position(result, cx.key.ifname)
    tap = next(i for i in result.interfaces if i.mac == cx.facts["tap_mac"])
    pseudo = Interface(tap.name, cx.facts["mac"], 0, cx.key.container_id)
    # No address points at what moves: the tap, and the host's end behind it.
    interfaces = (*(i for i in result.interfaces if i is not tap), tap, pseudo)
    guest = tuple(
        replace(ip, interface=len(interfaces) - 1)
        for ip in result.ips
        if ip.interface in (pod, None)
    )
    return replace(result, interfaces=interfaces, ips=result.ips + guest)


def _position(result: Result, ifname: str) -> int:
    for n, interface in enumerate(result.interfaces):
        if interface.name == ifname and interface.sandbox:
            return n
    raise BadConfig(f"prevResult: has no interface {ifname} with a sandbox")
