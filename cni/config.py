"""The network configuration: decoded stdin -> NetConf. Unknown keys are refused by name.

Keys that CNI itself defines are in `_CNI`; the others are vmlink's and described in
docs/configuration.md. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cni import result as results
from cni.errors import BadConfig, BadEnvironment, UnsupportedField
from cni.spec import check_ifname
from cni.types import AttachmentKey, Request, Result

MODES = ("tc", "veth")
REDIRECTS = ("auto", "tcx", "cls_bpf", "mirred")
RESULT_STYLES = ("plain", "tc-redirect-tap")
UPLINKS = ("linux",)

_CNI = frozenset(
    "cniVersion name type ipam dns prevResult runtimeConfig capabilities args "
    "cni.dev/valid-attachments cni.dev/attachments".split()
)
_OWN = frozenset("mode linux redirect mtu mac queues tap resultStyle".split())
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_MAX_ID = 2**32 - 2  # the last uid is the kernel's "no such user"
_MAX_QUEUES = 256  # MAX_TAP_QUEUES in drivers/net/tun.c
_MAX_MTU = 65521  # the tap's: 65535 less an Ethernet header


@dataclass(frozen=True)
class LinuxUplink:
    """A Linux bridge. With `gateway` the bridge gets the gateway's address; `vlan` 0 is none."""

    kind: ClassVar[str] = "linux"
    bridge: str
    gateway: bool = False
    vlan: int = 0


@dataclass(frozen=True)
class Chained:
    """The interface that prevResult's plugins made."""

    kind: ClassVar[str] = "chained"


Uplink = LinuxUplink | Chained


@dataclass(frozen=True)
class TapConf:
    """Who may open the tap (None: root alone), and its name when the derived one will not do."""

    owner: int | None = None
    group: int | None = None
    name: str = ""


@dataclass(frozen=True)
class NetConf:
    """What a mode needs to know. `mtu` 0 takes the uplink's; `queues` counts pairs."""

    network: str
    mode: str
    uplink: Uplink
    redirect: str = "auto"
    mtu: int = 0
    mac: str = ""
    queues: int = 1
    tap: TapConf = field(default_factory=TapConf)
    ipam: str = ""
    result_style: str = "plain"
    prev: Result | None = None
    dns: Mapping[str, Any] = field(default_factory=dict)


def parse(request: Request) -> NetConf:
    """Raises UnsupportedField, BadConfig or BadEnvironment (CNI_ARGS), each with the remedy."""
    conf = request.conf
    _refuse_unknown(conf, _CNI | _OWN, "")
    mode = _choice(conf, "mode", MODES)
    prev = _prev(conf)
    uplink = _uplink(conf, chained=prev is not None or request.verb != "ADD")
    ipam = _ipam(conf)
    _refuse_combination(mode, uplink, request)
    return NetConf(
        network=conf["name"],
        mode=mode,
        uplink=uplink,
        redirect=_choice(conf, "redirect", REDIRECTS),
        mtu=_number(conf, "mtu", 68, _MAX_MTU) or 0,
        mac=_mac(request),
        queues=_number(conf, "queues", 1, _MAX_QUEUES) or 1,
        tap=_tap(conf, request.args),
        ipam=ipam,
        result_style=_choice(conf, "resultStyle", RESULT_STYLES),
        prev=prev,
        dns=_object(conf, "dns"),
    )


def valid_attachments(conf: Mapping[str, Any]) -> frozenset[AttachmentKey]:
    """GC's list. `null` is an empty list, an absent key an error (specification, GC)."""
    for name in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        if name in conf:
            return frozenset(_attachment(name, n, a) for n, a in enumerate(_list(conf, name)))
    raise BadConfig("cni.dev/valid-attachments: required for GC; null or [] means none is valid")


def _attachment(where: str, n: int, item: Any) -> AttachmentKey:
    try:
        return AttachmentKey(str(item["containerID"]), str(item["ifname"]))
    except (TypeError, KeyError) as e:
        raise BadConfig(f"{where}[{n}]: expected containerID and ifname, found {item!r}") from e


def _list(conf: Mapping[str, Any], name: str) -> list[Any]:
    value = conf[name]
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadConfig(f"{name}: expected a list or null, found {value!r}")
    return value


def _prev(conf: Mapping[str, Any]) -> Result | None:
    data = conf.get("prevResult")
    return None if data is None else results.load(data, "prevResult")


def _uplink(conf: Mapping[str, Any], chained: bool) -> Uplink:
    """Only an ADD must have a prevResult to chain on; DEL, GC and STATUS may come without."""
    if "linux" in conf:
        return _linux(_object(conf, "linux"))
    if not chained:
        raise BadConfig(
            "linux: no uplink is configured and there is no prevResult to chain on; name one of "
            f"{', '.join(UPLINKS)}, or put vmlink behind another plugin"
        )
    return Chained()


def _linux(data: Mapping[str, Any]) -> LinuxUplink:
    _refuse_unknown(data, ("bridge", "gateway", "vlan"), "linux.")
    if "bridge" not in data:
        raise BadConfig("linux.bridge: required, the name of a bridge")
    bridge = _link_name(data, "bridge", "linux.")
    gateway = data.get("gateway", False)
    if not isinstance(gateway, bool):
        raise BadConfig(f"linux.gateway: expected true or false, found {gateway!r}")
    return LinuxUplink(bridge, gateway, _number(data, "vlan", 1, 4094, "linux.") or 0)


def _refuse_combination(mode: str, uplink: Uplink, request: Request) -> None:
    if mode == "veth" and "tap" in request.conf:
        raise BadConfig("tap: mode veth makes none; remove the key or use mode tc")
    if mode == "veth" and request.conf.get("resultStyle") == "tc-redirect-tap":
        raise BadConfig("resultStyle: mode veth has no tap to tell of; use plain or mode tc")
    if isinstance(uplink, Chained):
        if mode == "veth":
            raise BadConfig(f"mode: veth needs an uplink, one of {', '.join(UPLINKS)}")
        for key in ("mtu", "mac", "ipam"):
            if request.conf.get(key):
                raise BadConfig(f"{key}: belongs to the plugin that vmlink is chained behind")
    elif uplink.gateway and not request.conf.get("ipam"):
        raise BadConfig("linux.gateway: needs ipam, whose gateway the bridge becomes")


def _ipam(conf: Mapping[str, Any]) -> str:
    kind = _object(conf, "ipam").get("type", "")
    if not isinstance(kind, str) or "/" in kind or kind in (".", ".."):
        raise BadConfig(f"ipam.type: expected the name of a plugin, found {kind!r}")
    if not kind and _object(conf, "ipam"):
        raise BadConfig("ipam.type: required, the name of an IPAM plugin such as host-local")
    return kind


def _mac(request: Request) -> str:
    """CNI convention: runtimeConfig, then args.cni, then CNI_ARGS, then the configuration."""
    conf = request.conf
    places = (
        ("runtimeConfig.mac", _object(conf, "runtimeConfig").get("mac")),
        ("args.cni.mac", _object(_object(conf, "args"), "cni", "args.").get("mac")),
        ("CNI_ARGS MAC", request.args.get("MAC")),
        ("mac", conf.get("mac")),
    )
    for where, value in places:
        if value not in (None, ""):
            return _checked_mac(where, value)
    return ""


def _checked_mac(where: str, value: Any) -> str:
    text = value.lower().replace("-", ":") if isinstance(value, str) else ""
    if not _MAC.fullmatch(text) or int(text[:2], 16) & 1 or text == "00:00:00:00:00:00":
        raise BadConfig(f"{where}: expected a unicast MAC like 02:00:00:00:00:01, found {value!r}")
    return text


def _tap(conf: Mapping[str, Any], args: Mapping[str, str]) -> TapConf:
    data = dict(_object(conf, "tap"))
    _refuse_unknown(data, ("owner", "group", "name"), "tap.")
    for key, arg in (("owner", "UID"), ("group", "GID")):
        if text := args.get("TC_REDIRECT_TAP_" + arg):
            if not (text.isascii() and text.isdecimal() and len(text) <= 10):
                raise BadEnvironment(f"CNI_ARGS TC_REDIRECT_TAP_{arg}: not a number: {text!r}")
            data[key] = int(text)
    if name := args.get("TC_REDIRECT_TAP_NAME"):
        data["name"] = name
    return TapConf(
        _number(data, "owner", 0, _MAX_ID, "tap."),
        _number(data, "group", 0, _MAX_ID, "tap."),
        _link_name(data, "name", "tap.") if "name" in data else "",
    )


def _link_name(data: Mapping[str, Any], key: str, where: str) -> str:
    value = data[key]
    try:
        check_ifname(value if isinstance(value, str) else "", where + key)
    except BadEnvironment as e:
        raise BadConfig(f"{where}{key}: {value!r} is not an interface name", e.msg) from e
    return str(value)


def _object(data: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
    value = data.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadConfig(f"{where}{key}: expected an object, found {value!r}")
    return value


def _choice(conf: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> str:
    value = conf.get(key, allowed[0])
    if value not in allowed:
        raise BadConfig(f"{key}: expected one of {', '.join(allowed)}, found {value!r}")
    return str(value)


def _number(data: Mapping[str, Any], key: str, low: int, high: int, where: str = "") -> int | None:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadConfig(f"{where}{key}: expected a number from {low} to {high}, found {value!r}")
    return value


def _refuse_unknown(data: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in data:
        if key not in known:
            raise UnsupportedField(
                f"{where}{key}: unknown key (value {data[key]!r}); known are "
                f"{', '.join(sorted(known))}"
            )
