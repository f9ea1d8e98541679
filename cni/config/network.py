"""The network configuration: decoded stdin -> NetConf. Unknown keys are refused by name.

Keys that CNI itself defines are in `_CNI`; the others are vmlink's and described in
docs/configuration.md. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cni.config import guard, mode_rules, nic, uplinks
from cni.config.guard import GuardConf
from cni.config.mode_rules import ANY_RUNTIME, PLAIN, Rules
from cni.config.nic import TapConf
from cni.config.readers import choice, flag, items, number, obj, refuse_unknown, text, texts
from cni.config.uplinks import Chained, Uplink
from cni.errors import BadConfig
from cni.spec import result as results
from cni.spec.request import DEVICE_KEYS, PER_CALL_KEYS
from cni.spec.types import AttachmentKey, Bandwidth, Lease, Request, Result

REDIRECTS = ("auto", "tcx", "cls_bpf", "mirred")
MACVTAP_MODES = ("bridge", "vepa", "private", "passthru")

_CNI = PER_CALL_KEYS | frozenset("name type ipam dns capabilities".split())
_OWN = frozenset(  # and those that modes and uplinks name
    "mode runtime redirect mtu mac queues bandwidth kubeovn resultStyle guard".split()
)
_RUNTIME_DNS = {"servers": "nameservers", "searches": "search", "options": "options"}
_PROVIDER = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_MAX_QUEUES = 256  # MAX_TAP_QUEUES in drivers/net/tun.c
_MAX_MTU = 65521  # the tap's: 65535 less an Ethernet header


@dataclass(frozen=True)
class KubeOvn:
    """The pod's addresses come from its annotations of `provider`.

    `routes` are the network's own, as kube-ovn has them in a network's configuration.
    """

    provider: str
    routes: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Chosen:
    """The mode that a pod has instead of its network's; `where` names the place of the choice."""

    mode: str
    where: str


@dataclass(frozen=True)
class NetConf:
    """What a mode needs to know of a network.

    `mtu` 0 takes the uplink's; `queues` counts pairs; `ipam` is the type of the IPAM plugin;
    `fixed_address`: the pod has asked for the address that it gets, perhaps one that it had before;
    `lease` is what kube-ovn chose for the pod, which the configuration alone does not tell; `guard`
    is None where the guest may send what it likes.
    """

    network: str
    mode: str
    uplink: Uplink
    runtime: str = ANY_RUNTIME
    redirect: str = "auto"
    mtu: int = 0
    mac: str = ""
    queues: int = 1
    tap: TapConf = field(default_factory=TapConf)
    macvtap_mode: str = MACVTAP_MODES[0]
    placeholder: bool = False
    bandwidth: Bandwidth | None = None
    device_info: str = ""
    ipam: str = ""
    fixed_address: bool = False
    kubeovn: KubeOvn | None = None
    lease: Lease | None = None
    result_style: str = PLAIN
    prev: Result | None = None
    dns: Mapping[str, Any] = field(default_factory=dict)
    guard: GuardConf | None = None

    @property
    def chained(self) -> bool:
        """Whether the pod's interface is another plugin's."""
        return isinstance(self.uplink, Chained)


def parse(request: Request, rules: Rules, chosen: Chosen | None = None) -> NetConf:
    """Read a network's configuration under the rules of the modes.

    With a mode that is `chosen` for the pod, keys of the network's other modes are passed over.
    Raises UnsupportedField, BadConfig or BadEnvironment (CNI_ARGS), each with the remedy.
    """
    conf = request.conf
    refuse_unknown(conf, known_keys(rules))
    for key in DEVICE_KEYS:  # no mode hands a device of the node's to the pod
        text(conf, key)
    mode, where = choice(conf, "mode", tuple(rules)), "mode"
    if chosen and chosen.mode != mode:
        mode, where = chosen.mode, chosen.where
        conf = mode_rules.without_others(conf, mode, rules)
    prev = _prev(conf)
    # Only an ADD must have a prevResult to chain on; DEL, GC and STATUS may come without.
    uplink = uplinks.parse(conf, request.args, prev is not None or request.verb != "ADD")
    _require_for_add(request.verb, uplink, prev)
    ipam = _ipam(conf)
    runtime = choice(conf, "runtime", mode_rules.runtimes(rules))
    mode = mode_rules.serving_mode(runtime, mode, uplink, request, rules)
    style = choice(conf, "resultStyle", mode_rules.result_styles(rules))
    mode_rules.refuse_combination(mode, where, uplink, conf, rules)
    return NetConf(
        network=conf["name"],
        mode=mode,
        uplink=uplink,
        runtime=runtime,
        redirect=choice(conf, "redirect", REDIRECTS),
        mtu=number(conf, "mtu", 68, _MAX_MTU) or 0,
        mac=nic.mac(request),
        queues=number(conf, "queues", 1, _MAX_QUEUES) or 1,
        tap=nic.tap(rules[mode], conf, request.args),
        macvtap_mode=_macvtap_mode(conf),
        placeholder=flag(conf, "placeholder"),
        bandwidth=nic.bandwidth(conf),
        device_info=nic.device_info(conf),
        ipam=ipam,
        fixed_address=nic.has_fixed_address(request),
        kubeovn=kubeovn(conf),
        result_style=style,
        prev=prev,
        dns=_dns(conf),
        guard=guard.parse(conf, mode, uplink.kind, rules[mode]),
    )


def known_keys(rules: Rules) -> frozenset[str]:
    """Return all keys that a configuration may have."""
    return _CNI | _OWN | {*uplinks.UPLINKS} | {*mode_rules.keys(rules)}


def kubeovn(conf: Mapping[str, Any]) -> KubeOvn | None:
    """Read the section `kubeovn`; None for none. Raises BadConfig or UnsupportedField."""
    data = obj(conf, "kubeovn")
    if not data:
        return None
    refuse_unknown(data, ("provider", "routes"), "kubeovn.")
    provider = data.get("provider")
    if not isinstance(provider, str) or not _PROVIDER.fullmatch(provider):
        raise BadConfig(
            f"kubeovn.provider: expected ovn, or NAME.NAMESPACE.ovn of a secondary network, found "
            f"{provider!r}"
        )
    return KubeOvn(provider, tuple(items(data, "routes", "kubeovn.")))


def valid_attachments(conf: Mapping[str, Any]) -> frozenset[AttachmentKey]:
    """Read GC's list: `null` is an empty one, an absent key an error. Raises BadConfig.

    Source: CNI specification 1.1.0, section "GC".
    """
    for name in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        if name in conf:
            return frozenset(_attachment(name, n, a) for n, a in enumerate(items(conf, name)))
    raise BadConfig("cni.dev/valid-attachments: required for GC; null or [] means none is valid")


def _attachment(where: str, n: int, item: Any) -> AttachmentKey:
    try:
        return AttachmentKey(str(item["containerID"]), str(item["ifname"]))
    except (TypeError, KeyError) as e:
        raise BadConfig(f"{where}[{n}]: expected containerID and ifname, found {item!r}") from e


def _prev(conf: Mapping[str, Any]) -> Result | None:
    data = conf.get("prevResult")
    return None if data is None else results.load(data, "prevResult")


def _require_for_add(verb: str, uplink: Uplink, prev: Result | None) -> None:
    if verb != "ADD":
        return
    uplinks.require_logical_port(uplink)
    if prev and not isinstance(uplink, Chained):
        raise BadConfig(
            f"prevResult: vmlink with an uplink of its own is the first of a chain; drop "
            f"{uplink.kind}, or the plugins before vmlink"
        )


def _ipam(conf: Mapping[str, Any]) -> str:
    kind = obj(conf, "ipam").get("type", "")
    if not isinstance(kind, str) or "/" in kind or kind in (".", ".."):
        raise BadConfig(f"ipam.type: expected the name of a plugin, found {kind!r}")
    if not kind and obj(conf, "ipam"):
        raise BadConfig("ipam.type: required, the name of an IPAM plugin such as host-local")
    return kind


def _dns(conf: Mapping[str, Any]) -> dict[str, Any]:
    """The runtime's, else the network's. Source: CNI conventions, capability `dns`."""
    where = "runtimeConfig."
    data = obj(obj(conf, "runtimeConfig"), "dns", where)
    asked = {key: texts(data, name, where + "dns.") for name, key in _RUNTIME_DNS.items()}
    passed = {key: value for key, value in asked.items() if value}
    return passed or results.load_dns(conf.get("dns"), "dns")


def _macvtap_mode(conf: Mapping[str, Any]) -> str:
    data = obj(conf, "macvtap")
    refuse_unknown(data, ("mode",), "macvtap.")
    return choice(data, "mode", MACVTAP_MODES, "macvtap.")
