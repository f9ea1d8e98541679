"""The keys of a network that describe the guest's NIC: MAC, access to the tap, bandwidth. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cni.config.mode_rules import KATAS_LINKS, ModeRules
from cni.config.readers import as_path, as_unicast_mac, link_name, number, obj, refuse_unknown
from cni.errors import BadConfig, BadEnvironment
from cni.spec.types import Bandwidth, Request, mac_of

_OF_POD = "pod"
_MAX_ID = 2**32 - 2  # the last uid is the kernel's "no such user"
_MAX_BITS = 2**53  # what every JSON parser on the way keeps exactly
# Runtimes give 2**31-1 or 2**32-1 bits to a pod whose annotations have a rate alone. Taken by the
# word, a limit of 10 Mbit/s would be none for its first 268 MB; so it is what passes in 0.1 s, or
# two of the largest packets that a sender leaves to be segmented.
_UNCHOSEN, _LEAST_BURST = 2**31 - 1, 2 * 65536 * 8


@dataclass(frozen=True)
class TapConf:
    """Who may open the tap, device node or socket: a uid and a gid, None for root alone.

    `name` is the tap's, "" for the derived one.
    """

    owner: int | None = None
    group: int | None = None
    name: str = ""


def mac(request: Request) -> str:
    """Return the MAC that was asked for, in lower case; "" for none. Raises BadConfig.

    The configuration's may be "pod": one that derives from the pod's name, its network and its
    interface, so that a pod which comes back has it again. Source: CNI conventions: runtimeConfig,
    then args.cni, then CNI_ARGS, then the configuration.
    """
    conf = request.conf
    places = (
        ("runtimeConfig.mac", obj(conf, "runtimeConfig").get("mac")),
        ("args.cni.mac", obj(obj(conf, "args"), "cni", "args.").get("mac")),
        ("CNI_ARGS MAC", request.args.get("MAC")),
        ("mac", conf.get("mac")),
    )
    for where, value in places:
        if (where, value) == ("mac", _OF_POD):
            return _mac_of_pod(request)
        if value not in (None, ""):
            return as_unicast_mac(value, where)
    return ""


def has_fixed_address(request: Request) -> bool:
    """Return whether the pod has asked for its address, or the network has given it one.

    Source: CNI conventions, `ips`; the IPAM plugin static.
    """
    conf = request.conf
    asked = (
        obj(conf, "runtimeConfig").get("ips"),
        obj(obj(conf, "args"), "cni", "args.").get("ips"),
        request.args.get("IP"),
    )
    return any(asked) or obj(conf, "ipam").get("type") == "static"


def _mac_of_pod(request: Request) -> str:
    names = [request.args.get(f"K8S_POD_{what}", "") for what in ("NAMESPACE", "NAME")]
    if request.key and all(names):
        return mac_of(request.conf["name"], *names, request.key.ifname)
    if request.verb == "ADD":
        raise BadConfig(
            f"mac: {_OF_POD} needs K8S_POD_NAMESPACE and K8S_POD_NAME in CNI_ARGS; drop it, or "
            "give a MAC"
        )
    return ""


def tap(rules: ModeRules, conf: Mapping[str, Any], args: Mapping[str, str]) -> TapConf:
    """Read the section about access, which CNI_ARGS may override.

    Raises BadConfig, UnsupportedField or BadEnvironment.
    """
    section = "vhostuser" if "vhostuser" in rules.keys else "tap"
    data = dict(obj(conf, section))
    named = "tap.name" in rules.keys
    refuse_unknown(data, ("owner", "group", "name") if named else ("owner", "group"), section + ".")
    for key, arg in (("owner", "UID"), ("group", "GID")):
        if text := args.get("TC_REDIRECT_TAP_" + arg):
            if not (text.isascii() and text.isdecimal() and len(text) <= 10):
                raise BadEnvironment(
                    f"CNI_ARGS TC_REDIRECT_TAP_{arg}: expected a number, found {text!r}"
                )
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
    if KATAS_LINKS.fullmatch(name):
        raise BadConfig(f"{where}name: {name} is a name of Kata's own links; choose another")
    return name


def bandwidth(conf: Mapping[str, Any]) -> Bandwidth | None:
    """Read the runtime's limits, else the configuration's; None for none.

    Raises BadConfig or UnsupportedField.
    """
    where = "runtimeConfig."
    data = obj(obj(conf, "runtimeConfig"), "bandwidth", where)
    if not data:
        where, data = "", obj(conf, "bandwidth")
    where += "bandwidth."
    refuse_unknown(data, ("ingressRate", "ingressBurst", "egressRate", "egressBurst"), where)
    pairs = [_rate(data, direction, where) for direction in ("ingress", "egress")]
    return Bandwidth(*pairs[0], *pairs[1]) if any(rate for rate, _ in pairs) else None


def _rate(data: Mapping[str, Any], direction: str, where: str) -> tuple[int, int]:
    rate = number(data, direction + "Rate", 0, _MAX_BITS, where) or 0
    burst = number(data, direction + "Burst", 0, _MAX_BITS, where) or 0
    if bool(rate) != bool(burst):
        present, absent = ("Rate", "Burst") if rate else ("Burst", "Rate")
        raise BadConfig(
            f"{where}{direction}{absent}: required beside {direction}{present}, both above 0"
        )
    return rate, least_burst(rate) if burst >= _UNCHOSEN else burst


def least_burst(rate: int) -> int:
    """Return the burst (bits) for a rate (bit/s) that comes without."""
    return max(rate // 10, _LEAST_BURST)


def device_info(conf: Mapping[str, Any]) -> str:
    """Return the path of the device-info file, "" for none. Raises BadConfig.

    Source: Network Plumbing Working Group, "Device Information Specification" 1.1.0.
    """
    path = obj(conf, "runtimeConfig").get("CNIDeviceInfoFile")
    return as_path(path, "runtimeConfig.CNIDeviceInfoFile") if path else ""
