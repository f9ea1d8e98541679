"""What a configuration may ask of each mode: its uplinks, its runtimes, its keys. Pure.

The modes declare it (`cni.modes`); nothing here knows a mode by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cni.config.uplinks import Chained, LinuxUplink, OvsUplink, Uplink
from cni.errors import BadConfig, BadEnvironment
from cni.spec.types import Request

ANY_RUNTIME = "any"
PLAIN = "plain"  # the result style that every mode has
KATAS_LINKS = re.compile(r"(tap|br)[0-9]+_kata|ifb0")  # names of links that Kata makes


@dataclass(frozen=True)
class ModeRules:
    """What a network's configuration may ask of one mode.

    `uplinks` are kinds of uplinks. `runtimes` maps the runtimes whose pods the mode can serve to
    the mode that serves them, mostly itself; those in `addressless` learn of the NIC from a file
    and need no address. `keys` are the keys of the configuration that belong to this mode and not
    to all, with a dot for one in a section. `poolable`: ports can be prepared before a pod comes.
    `guards` are the uplinks on which what the guest sends is guarded.
    `hears`: the pod's namespace gets what is sent to the interface, and not a guest alone.
    """

    uplinks: tuple[str, ...]
    runtimes: Mapping[str, str]
    keys: frozenset[str] = frozenset()
    addressless: frozenset[str] = frozenset()
    result_styles: tuple[str, ...] = (PLAIN,)
    poolable: bool = False
    guards: tuple[str, ...] = ()
    hears: bool = False


Rules = Mapping[str, ModeRules]  # by the names of the modes; the first is the default


def runtimes(rules: Rules) -> tuple[str, ...]:
    """Return the runtimes that some mode can serve; the first is the default."""
    return tuple(dict.fromkeys(name for each in rules.values() for name in each.runtimes))


def result_styles(rules: Rules) -> tuple[str, ...]:
    """Return the styles of a result that some mode has; the first is the default."""
    return tuple(dict.fromkeys(style for each in rules.values() for style in each.result_styles))


def keys(rules: Rules) -> dict[str, tuple[str, ...]]:
    """Return the top-level keys that belong to some modes alone, and to which."""
    found = sorted({key for each in rules.values() for key in each.keys if "." not in key})
    return {key: _having(rules, key) for key in found}


def _having(rules: Rules, key: str) -> tuple[str, ...]:
    return tuple(mode for mode, each in rules.items() if key in each.keys)


def without_others(conf: Mapping[str, Any], mode: str, rules: Rules) -> dict[str, Any]:
    """Return the configuration without the keys of other modes than the one chosen for a pod."""
    foreign = {key for key, modes in keys(rules).items() if mode not in modes}
    if conf.get("resultStyle") not in rules[mode].result_styles:
        foreign.add("resultStyle")
    return {key: value for key, value in conf.items() if key not in foreign}


def serving_mode(runtime: str, mode: str, uplink: Uplink, request: Request, rules: Rules) -> str:
    """Return the mode that serves the pods of a runtime in a network of `mode`.

    Raises BadConfig or BadEnvironment.
    """
    if runtime == ANY_RUNTIME:
        return mode
    if runtime not in rules[mode].runtimes:
        able = any_of(name for name, each in rules.items() if runtime in each.runtimes)
        raise BadConfig(f"runtime: {runtime} cannot use mode {mode}, but {able}")
    if isinstance(uplink, Chained):
        raise BadConfig(
            f"runtime: {runtime} plugs in other plugins' interfaces itself; leave vmlink out of "
            "the chain, or name an uplink"
        )
    addressed = request.conf.get("ipam") or request.conf.get("kubeovn")
    if not addressed and runtime not in rules[mode].addressless:
        raise BadConfig(f"ipam: required with runtime {runtime}, which looks for addresses")
    if request.key and KATAS_LINKS.fullmatch(request.key.ifname):
        raise BadEnvironment(
            f"CNI_IFNAME: {request.key.ifname} is a name of Kata's own links; choose another"
        )
    return rules[mode].runtimes[runtime]


def refuse_combination(
    mode: str, where: str, uplink: Uplink, conf: Mapping[str, Any], rules: Rules
) -> None:
    """Raise BadConfig for keys, mode and uplink that do not go together; `where` chose the mode."""
    _refuse_uplink(mode, where, uplink, rules[mode])
    for key, modes in keys(rules).items():
        if key in conf and mode not in modes:
            raise BadConfig(f"{key}: has no meaning in mode {mode}; it belongs to {any_of(modes)}")
    style = conf.get("resultStyle", PLAIN)
    if style not in rules[mode].result_styles:
        able = any_of(name for name, each in rules.items() if style in each.result_styles)
        raise BadConfig(
            f"resultStyle: mode {mode} has no redirected tap; use {PLAIN} or mode {able}"
        )
    if isinstance(uplink, Chained):
        for key in ("mtu", "mac", "ipam", "macvtap"):
            if conf.get(key):
                raise BadConfig(f"{key}: belongs to a network with an uplink, and this is chained")
    if isinstance(uplink, LinuxUplink) and uplink.gateway and not conf.get("ipam"):
        raise BadConfig("linux.gateway: needs ipam, whose gateway the bridge becomes")
    if (conf.get("ipam") or {}).get("type") == "dhcp" and not rules[mode].hears:
        raise BadConfig(
            f"ipam.type: dhcp asks in the pod's namespace, and in mode {mode} the guest alone "
            "would get the answer; drop ipam, so that the guest asks the DHCP server itself"
        )
    if conf.get("kubeovn"):
        _refuse_beside_kubeovn(uplink, conf)


def _refuse_uplink(mode: str, where: str, uplink: Uplink, rules: ModeRules) -> None:
    if uplink.kind in rules.uplinks:
        return
    fitting = any_of("none, chained" if k == Chained.kind else k for k in rules.uplinks)
    raise BadConfig(
        f"{where}: {mode} does not go with the uplink {uplink.kind}; it needs {fitting}"
    )


def _refuse_beside_kubeovn(uplink: Uplink, conf: Mapping[str, Any]) -> None:
    if not isinstance(uplink, OvsUplink):
        raise BadConfig("kubeovn: its ports are on Open vSwitch; name its bridge in ovs.bridge")
    for key in ("ipam", "mac"):
        if conf.get(key):
            raise BadConfig(f"{key}: kubeovn brings the pod's MAC and addresses; drop one")


def any_of(words: Iterable[str]) -> str:
    """Return the words as a choice for people."""
    return " or ".join(words)
