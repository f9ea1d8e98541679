"""Where the host's side of an attachment goes: a bridge, a switch, a NIC, or another plugin's link.

Pure. The keys are described in docs/configuration.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cni.config.readers import MAX_VLAN, flag, items, link_name, number, obj, refuse_unknown
from cni.errors import BadConfig
from cni.spec.types import is_plain

OWN_IDS = "vmlink-"  # what external_ids of ours begin with


@dataclass(frozen=True)
class LinuxUplink:
    """A Linux bridge. With `gateway` the bridge gets the gateway's address; `vlan` 0 is none."""

    kind: ClassVar[str] = "linux"
    bridge: str
    gateway: bool = False
    vlan: int = 0


@dataclass(frozen=True)
class OvsUplink:
    """A bridge of Open vSwitch, which must be there.

    `vlan` is the access (or native) tag, 0 for none; `trunk` the tags that pass tagged;
    `external_ids` are the Interface row's. With `ovn` it is OVN's integration bridge, and
    `iface-id` names the logical port.
    """

    kind: ClassVar[str] = "ovs"
    bridge: str
    vlan: int = 0
    trunk: tuple[int, ...] = ()
    external_ids: Mapping[str, str] = field(default_factory=dict)
    ovn: bool = False


@dataclass(frozen=True)
class MasterUplink:
    """A NIC of the host, which a macvtap shares."""

    kind: ClassVar[str] = "master"
    interface: str


@dataclass(frozen=True)
class Chained:
    """The interface that prevResult's plugins made."""

    kind: ClassVar[str] = "chained"


Uplink = LinuxUplink | OvsUplink | MasterUplink | Chained
UPLINKS = ("linux", "ovs", "master")  # those that a key of the configuration names


def parse(conf: Mapping[str, Any], args: Mapping[str, str], chained: bool) -> Uplink:
    """`args` is CNI_ARGS; `chained` tells whether an interface of prevResult may be meant."""
    named = [kind for kind in UPLINKS if kind in conf]
    if len(named) > 1:
        raise BadConfig(f"{named[1]}: a network has one uplink, and {named[0]} is there; drop one")
    if named == ["linux"]:
        return _linux(obj(conf, "linux"))
    if named == ["ovs"]:
        return _ovs(obj(conf, "ovs"), args)
    if named == ["master"]:
        return MasterUplink(link_name(conf, "master"))
    if not chained:
        raise BadConfig(
            f"{UPLINKS[0]}: no uplink is configured and there is no prevResult to chain on; name "
            f"one of {', '.join(UPLINKS)}, or put vmlink behind another plugin"
        )
    return Chained()


def _linux(data: Mapping[str, Any]) -> LinuxUplink:
    refuse_unknown(data, ("bridge", "gateway", "vlan"), "linux.")
    bridge = _bridge(data, "linux.")
    vlan = number(data, "vlan", 1, MAX_VLAN, "linux.") or 0
    return LinuxUplink(bridge, flag(data, "gateway", "linux."), vlan)


def _ovs(data: Mapping[str, Any], args: Mapping[str, str]) -> OvsUplink:
    refuse_unknown(data, ("bridge", "vlan", "trunk", "external_ids", "ovn"), "ovs.")
    ovn = flag(data, "ovn", "ovs.")
    for key in ("vlan", "trunk"):
        if ovn and data.get(key):
            raise BadConfig(f"ovs.{key}: has no meaning with ovs.ovn, whose flows decide; drop one")
    tags = {tag for n, item in enumerate(items(data, "trunk", "ovs.")) for tag in _tags(n, item)}
    return OvsUplink(
        _bridge(data, "ovs."),
        number(data, "vlan", 1, MAX_VLAN, "ovs.") or 0,
        tuple(sorted(tags)),
        {**_port_name(args, ovn), **_external_ids(obj(data, "external_ids", "ovs."))},
        ovn,
    )


def _bridge(data: Mapping[str, Any], where: str) -> str:
    if "bridge" not in data:
        raise BadConfig(f"{where}bridge: required, the name of a bridge")
    return link_name(data, "bridge", where)


def _tags(n: int, item: Any) -> range:
    """An item of a trunk, as ovs-cni and the bridge plugin have it: an id, or first and last."""
    where = f"ovs.trunk[{n}]"
    if not isinstance(item, dict) or set(item) not in ({"id"}, {"minID", "maxID"}):
        raise BadConfig(
            f'{where}: expected {{"id": TAG}} or {{"minID": TAG, "maxID": TAG}}, found {item!r}'
        )
    tags = {key: number(item, key, 1, MAX_VLAN, where + ".") or 0 for key in item}
    first, last = tags.get("id") or tags["minID"], tags.get("id") or tags["maxID"]
    if first > last:
        raise BadConfig(f"{where}: minID {first} is above maxID {last}")
    return range(first, last + 1)


def require_logical_port(uplink: Uplink) -> None:
    """Raises BadConfig. Only an ADD must know the port: the rows of a DEL are found without."""
    if isinstance(uplink, OvsUplink) and uplink.ovn and "iface-id" not in uplink.external_ids:
        raise BadConfig(
            "ovs.external_ids.iface-id: required with ovs.ovn, the name of the logical switch "
            "port, since CNI_ARGS has no K8S_POD_NAME and K8S_POD_NAMESPACE to make it of"
        )


def _port_name(args: Mapping[str, str], ovn: bool) -> dict[str, str]:
    """Return the ids that name OVN's logical port as kube-ovn does, when the runtime says whose.

    The pod's UID matters only where the logical port has `options:iface-id-ver` (ovn-nb(5)).
    """
    pod, namespace = args.get("K8S_POD_NAME"), args.get("K8S_POD_NAMESPACE")
    ids = {"iface-id": f"{pod}.{namespace}"} if pod and namespace else {}
    if ovn:
        ids["iface-status"] = "active"
        ids |= {"iface-id-ver": args["K8S_POD_UID"]} if args.get("K8S_POD_UID") else {}
    return ids


def _external_ids(data: Mapping[str, Any]) -> dict[str, str]:
    for key, value in data.items():
        if not is_plain(key) or not is_plain(value) or not value:
            raise BadConfig(f"ovs.external_ids.{key}: expected a text, found {value!r}")
        if key.startswith("ovn-installed"):
            raise BadConfig(f"ovs.external_ids.{key}: is ovn-controller's answer; drop it")
        if key.startswith(OWN_IDS):
            raise BadConfig(f"ovs.external_ids.{key}: {OWN_IDS}* are vmlinkd's own; rename it")
    return dict(data)
