"""The network configuration: decoded stdin -> NetConf. Unknown keys are refused by name.

Keys that CNI itself defines are in `_CNI`; the others are vmlink's and described in
docs/configuration.md. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cni.config import uplinks
from cni.config.readers import (
    choice,
    flag,
    is_unicast_mac,
    items,
    link_name,
    number,
    obj,
    refuse_unknown,
)
from cni.config.uplinks import Chained, LinuxUplink, OvsUplink, Uplink
from cni.errors import BadConfig, BadEnvironment
from cni.spec import result as results
from cni.spec.types import AttachmentKey, Lease, Request, Result
from cni.spec.types import Bandwidth as Bandwidth

# Each mode with the uplinks that it makes sense with; the first mode is the default.
MODES = {
    "tc": ("linux", "ovs", "chained"),
    "veth": ("linux", "ovs"),
    "tap": ("linux", "ovs"),
    "macvtap": ("master", "chained"),
    "vhostuser": ("ovs",),
}
# Whose VM the pod is, and the modes that it can use. Kata's runtimes put a tap behind an interface
# themselves, so mode tc leaves a plain veth to them.
RUNTIMES = {
    "any": tuple(MODES),
    "kata": ("tc", "veth", "tap", "vhostuser"),
    "kata-go": ("tc", "veth", "macvtap", "vhostuser"),
}
REDIRECTS = ("auto", "tcx", "cls_bpf", "mirred")
RESULT_STYLES = ("plain", "tc-redirect-tap")
MACVTAP_MODES = ("bridge", "vepa", "private", "passthru")

_CNI = frozenset(
    "cniVersion name type ipam dns prevResult runtimeConfig capabilities args "
    "cni.dev/valid-attachments cni.dev/attachments".split()
)
_OWN = frozenset(
    "mode runtime redirect mtu mac queues tap macvtap vhostuser placeholder bandwidth kubeovn "
    "resultStyle".split()
)
# The modes that a key has a meaning for, and where it is none whatever the mode.
_ONLY = {
    "tap": ("tc", "tap", "macvtap"),
    "macvtap": ("macvtap",),
    "vhostuser": ("vhostuser",),
    "placeholder": ("tap", "vhostuser"),
}
_KATAS = re.compile(r"(tap|br)[0-9]+_kata|ifb0")
_PROVIDER = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_MAX_ID = 2**32 - 2  # the last uid is the kernel's "no such user"
_MAX_QUEUES = 256  # MAX_TAP_QUEUES in drivers/net/tun.c
_MAX_MTU = 65521  # the tap's: 65535 less an Ethernet header
_MAX_BITS = 2**53  # what every JSON parser on the way keeps exactly
# Runtimes give 2**31-1 or 2**32-1 bits to a pod whose annotations have a rate alone. Taken by the
# word, a limit of 10 Mbit/s would be none for its first 268 MB; so it is what passes in 0.1 s, or
# two of the largest packets that a sender leaves to be segmented.
_UNCHOSEN, _LEAST_BURST = 2**31 - 1, 2 * 65536 * 8


@dataclass(frozen=True)
class TapConf:
    """Who may open the tap, device node or socket (None: root alone), and the tap's name when
    the derived one will not do."""

    owner: int | None = None
    group: int | None = None
    name: str = ""


@dataclass(frozen=True)
class KubeOvn:
    """The addresses come from the pod's annotations of `provider`; `routes` are the network's own,
    as kube-ovn has them in a network's configuration."""

    provider: str
    routes: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Chosen:
    """The mode that a pod has instead of its network's; `where` says who chose."""

    mode: str
    where: str


@dataclass(frozen=True)
class NetConf:
    """What a mode needs to know. `mtu` 0 takes the uplink's; `queues` counts pairs; `lease` is
    what kube-ovn gave the pod, which the configuration alone does not tell."""

    network: str
    mode: str
    uplink: Uplink
    runtime: str = "any"
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
    kubeovn: KubeOvn | None = None
    lease: Lease | None = None
    result_style: str = "plain"
    prev: Result | None = None
    dns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def switch_limits(self) -> bool:
        """Whether `bandwidth` is for rows of Open vSwitch. Mode tc has a place for its limits in
        the pod's namespace, where the guest does not reach them."""
        return isinstance(self.uplink, OvsUplink) and self.mode != "tc"


def parse(request: Request, chosen: Chosen | None = None) -> NetConf:
    """With a mode that is `chosen` for the pod, options of the network's other modes are passed
    over. Raises UnsupportedField, BadConfig or BadEnvironment (CNI_ARGS), each with the remedy."""
    conf = request.conf
    refuse_unknown(conf, _CNI | _OWN | {*uplinks.UPLINKS})
    mode, where = choice(conf, "mode", tuple(MODES)), "mode"
    if chosen and chosen.mode != mode:
        mode, where = chosen.mode, chosen.where
        conf = _without_others(conf, mode)
    prev = _prev(conf)
    # Only an ADD must have a prevResult to chain on; DEL, GC and STATUS may come without.
    uplink = uplinks.parse(conf, request.args, prev is not None or request.verb != "ADD")
    if request.verb == "ADD":
        uplinks.require_logical_port(uplink)
    ipam = _ipam(conf)
    runtime = choice(conf, "runtime", tuple(RUNTIMES))
    if runtime != "any":
        mode = _katas_mode(runtime, mode, uplink, request)
    _refuse_combination(mode, where, uplink, conf)
    return NetConf(
        network=conf["name"],
        mode=mode,
        uplink=uplink,
        runtime=runtime,
        redirect=choice(conf, "redirect", REDIRECTS),
        mtu=number(conf, "mtu", 68, _MAX_MTU) or 0,
        mac=_mac(request),
        queues=number(conf, "queues", 1, _MAX_QUEUES) or 1,
        tap=_tap(mode, conf, request.args),
        macvtap_mode=_macvtap_mode(conf),
        placeholder=flag(conf, "placeholder"),
        bandwidth=_bandwidth(conf),
        device_info=_device_info(conf),
        ipam=ipam,
        kubeovn=kubeovn(conf),
        result_style=choice(conf, "resultStyle", RESULT_STYLES),
        prev=prev,
        dns=obj(conf, "dns"),
    )


def kubeovn(conf: Mapping[str, Any]) -> KubeOvn | None:
    """The section of that name. Raises BadConfig, UnsupportedField."""
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
    """GC's list. `null` is an empty list, an absent key an error (specification, GC)."""
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


def _without_others(conf: Mapping[str, Any], mode: str) -> dict[str, Any]:
    foreign = {key for key, modes in _ONLY.items() if mode not in modes}
    foreign |= {"resultStyle"} if mode != "tc" else set()
    return {key: value for key, value in conf.items() if key not in foreign}


def _refuse_combination(mode: str, where: str, uplink: Uplink, conf: Mapping[str, Any]) -> None:
    if uplink.kind not in MODES[mode]:
        fitting = " or ".join("none, chained" if k == "chained" else k for k in MODES[mode])
        raise BadConfig(
            f"{where}: {mode} does not go with the uplink {uplink.kind}; it needs {fitting}"
        )
    for key, modes in _ONLY.items():
        if key in conf and mode not in modes:
            raise BadConfig(f"{key}: has no meaning in mode {mode}; it belongs to {_or(modes)}")
    if conf.get("resultStyle") == "tc-redirect-tap" and mode != "tc":
        raise BadConfig(f"resultStyle: mode {mode} has no redirected tap; use plain or mode tc")
    if isinstance(uplink, Chained):
        for key in ("mtu", "mac", "ipam", "macvtap"):
            if conf.get(key):
                raise BadConfig(f"{key}: belongs to a network with an uplink, and this is chained")
    if conf.get("kubeovn"):
        if not isinstance(uplink, OvsUplink):
            raise BadConfig("kubeovn: its ports are on Open vSwitch; name its bridge in ovs.bridge")
        for key in ("ipam", "mac"):
            if conf.get(key):
                raise BadConfig(f"{key}: kubeovn brings the pod's MAC and addresses; drop one")
    if isinstance(uplink, LinuxUplink) and uplink.gateway and not conf.get("ipam"):
        raise BadConfig("linux.gateway: needs ipam, whose gateway the bridge becomes")


def _katas_mode(runtime: str, mode: str, uplink: Uplink, request: Request) -> str:
    if mode not in RUNTIMES[runtime]:
        raise BadConfig(f"runtime: {runtime} cannot use mode {mode}, but {_or(RUNTIMES[runtime])}")
    if isinstance(uplink, Chained):
        raise BadConfig(
            f"runtime: {runtime} plugs in other plugins' interfaces itself; leave vmlink out of "
            "the chain, or name an uplink"
        )
    described = runtime == "kata" and mode in ("tap", "vhostuser")  # by a file, with any address
    if not described and not (request.conf.get("ipam") or request.conf.get("kubeovn")):
        raise BadConfig(f"ipam: required with runtime {runtime}, which looks for addresses")
    if request.key and _KATAS.fullmatch(request.key.ifname):
        raise BadEnvironment(f"CNI_IFNAME: {request.key.ifname} is a name of Kata's own links")
    return "veth" if mode == "tc" else mode


def _or(words: tuple[str, ...]) -> str:
    return " or ".join(words)


def _ipam(conf: Mapping[str, Any]) -> str:
    kind = obj(conf, "ipam").get("type", "")
    if not isinstance(kind, str) or "/" in kind or kind in (".", ".."):
        raise BadConfig(f"ipam.type: expected the name of a plugin, found {kind!r}")
    if not kind and obj(conf, "ipam"):
        raise BadConfig("ipam.type: required, the name of an IPAM plugin such as host-local")
    return kind


def _mac(request: Request) -> str:
    """CNI convention: runtimeConfig, then args.cni, then CNI_ARGS, then the configuration."""
    conf = request.conf
    places = (
        ("runtimeConfig.mac", obj(conf, "runtimeConfig").get("mac")),
        ("args.cni.mac", obj(obj(conf, "args"), "cni", "args.").get("mac")),
        ("CNI_ARGS MAC", request.args.get("MAC")),
        ("mac", conf.get("mac")),
    )
    for where, value in places:
        if value not in (None, ""):
            return _checked_mac(where, value)
    return ""


def _checked_mac(where: str, value: Any) -> str:
    text = value.lower().replace("-", ":") if isinstance(value, str) else ""
    if not is_unicast_mac(text):
        raise BadConfig(f"{where}: expected a unicast MAC like 02:00:00:00:00:01, found {value!r}")
    return text


def _tap(mode: str, conf: Mapping[str, Any], args: Mapping[str, str]) -> TapConf:
    section = "vhostuser" if mode == "vhostuser" else "tap"
    data = dict(obj(conf, section))
    named = mode in ("tc", "tap")
    refuse_unknown(data, ("owner", "group", "name") if named else ("owner", "group"), section + ".")
    for key, arg in (("owner", "UID"), ("group", "GID")):
        if text := args.get("TC_REDIRECT_TAP_" + arg):
            if not (text.isascii() and text.isdecimal() and len(text) <= 10):
                raise BadEnvironment(f"CNI_ARGS TC_REDIRECT_TAP_{arg}: not a number: {text!r}")
            data[key] = int(text)
    if (name := args.get("TC_REDIRECT_TAP_NAME")) and named:
        data["name"] = name
    return TapConf(
        number(data, "owner", 0, _MAX_ID, section + "."),
        number(data, "group", 0, _MAX_ID, section + "."),
        _tap_name(data, section + ".") if "name" in data else "",
    )


def _tap_name(data: Mapping[str, Any], where: str) -> str:
    name = link_name(data, "name", where)
    if _KATAS.fullmatch(name):
        raise BadConfig(f"{where}name: {name} is a name of Kata's own links; choose another")
    return name


def _macvtap_mode(conf: Mapping[str, Any]) -> str:
    data = obj(conf, "macvtap")
    refuse_unknown(data, ("mode",), "macvtap.")
    return choice(data, "mode", MACVTAP_MODES, "macvtap.")


def _bandwidth(conf: Mapping[str, Any]) -> Bandwidth | None:
    """The runtime's, else the configuration's."""
    where = "runtimeConfig."
    data = obj(obj(conf, "runtimeConfig"), "bandwidth", where)
    if not data:
        where, data = "", obj(conf, "bandwidth")
    where += "bandwidth."
    refuse_unknown(data, ("ingressRate", "ingressBurst", "egressRate", "egressBurst"), where)
    pairs = [_rate(data, way, where) for way in ("ingress", "egress")]
    return Bandwidth(*pairs[0], *pairs[1]) if any(rate for rate, _ in pairs) else None


def _device_info(conf: Mapping[str, Any]) -> str:
    path = obj(conf, "runtimeConfig").get("CNIDeviceInfoFile") or ""
    if not isinstance(path, str) or (path and not path.startswith("/")) or "\0" in path:
        where = "runtimeConfig.CNIDeviceInfoFile"
        raise BadConfig(f"{where}: expected an absolute path, found {path!r}")
    return path


def _rate(data: Mapping[str, Any], way: str, where: str) -> tuple[int, int]:
    rate = number(data, way + "Rate", 0, _MAX_BITS, where) or 0
    burst = number(data, way + "Burst", 0, _MAX_BITS, where) or 0
    if bool(rate) != bool(burst):
        present, absent = ("Rate", "Burst") if rate else ("Burst", "Rate")
        raise BadConfig(f"{where}{way}{absent}: required beside {way}{present}, both above 0")
    return rate, least_burst(rate) if burst >= _UNCHOSEN else burst


def least_burst(rate: int) -> int:
    """Bits, for a rate (bit/s) that comes without."""
    return max(rate // 10, _LEAST_BURST)
