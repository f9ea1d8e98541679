"""What a value can be that nobody expected, and the way of each input through the pure layers."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from cni.attach.plan import Plan, union
from cni.cancel import Cancel
from cni.config import network
from cni.config.network import NetConf
from cni.config.settings import KubeOvnSocket, Kubernetes
from cni.daemon import check
from cni.daemon.kubeovn_server import CniRequest, KubeOvnServer, _response
from cni.daemon.result_builder import build_device, build_result
from cni.errors import VmlinkError
from cni.ipam import delegate
from cni.ipam.hostlocal import config as hostlocal
from cni.kernel import route_encode, rtnl_encode
from cni.kernel.netns import descriptor
from cni.kubeovn.pod_network import PodNetworks
from cni.kubeovn.pods import Pod, Pods
from cni.modes import MODES, rules
from cni.modes.steps.limits import rates_of
from cni.modes.steps.links import Nic, TapMac
from cni.modes.steps.macvtap import MacvtapDevice
from cni.modes.steps.ovs_bridge import Datapath
from cni.modes.steps.ovs_port import OvsPort
from cni.modes.steps.token_bucket import limits
from cni.modes.steps.vhost_socket import VhostSocket
from cni.ovs.port_rows import Rows
from cni.spec import request as spec
from cni.spec import result as results
from cni.spec.capabilities import POD_ANNOTATIONS
from cni.spec.types import IP, Request, Result
from cni.vmm.device import Device
from cni.vmm.formats import FORMATS
from tests.unit.purekit import BASE, KEY, NETNS, context, kubeovn_annotations

Path = tuple[str | int, ...]
ENV = {
    "CNI_CONTAINERID": KEY.container_id,
    "CNI_IFNAME": KEY.ifname,
    "CNI_NETNS": NETNS,
    "CNI_PATH": "/opt/cni/bin",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop",
}
FACTS = (
    Nic("02:00:00:00:00:01", 1400),
    TapMac("02:00:00:00:00:02"),
    Datapath(False, True),
    VhostSocket("/run/s"),
    MacvtapDevice(131072, 1, True),
)

_TEXTS = (
    "| |x|\0|\ud800|é|a/b|..|a b|10.0.0.1|10.0.0.1/24|10.0.0.5/8|10.0.0.0/255.0.0.0|10.0.0.1/33|"
    "10.0.0.1/٢|0.0.0.0/0|::/0|fd00::1|fd00::1/64|fd00::5/32|::ffff:10.0.0.1/120|fe80::1%eth0|"
    "fe80::1%eth0/64|256.1.1.1|default|02:00:00:00:00:07|ff:ff:ff:ff:ff:ff|ovn|n.shop.ovn|eth0|"
    "tap0_kata|true|1|-1|99999999999|1e9|null|[]|[null]|{|[[|5|[5]|[{}]|"
    '[{"dst":"10.0.0.1/8"}]|[{"dst":5,"gw":true}]|[{"dst":"::/0","gw":"10.16.0.1"}]|/x|/x\ud800|'
    "tc|veth|kata|kata-go|host-local|1.0.0|10.16.0.5,fd00::5|10.16.0.0/16,fd00::/64|c1|0x10|"
    "10.0.0.255|10.0.0|010.0.0.1/24|10.0.0.1/|/24|10.0.0.1/-1|10.0.0.1/24/5|::|::1/128|fe80::/10|"
    "ff02::1|224.0.0.1|255.255.255.255/32|0.0.0.0|02-00-00-00-00-07|02:00:00:00:00:0g|lo|e%d|"
    "true;false|a=b|\n|x\ny|\u2028|\U0001f600|'|\"|$(x)|--|http://x|unix:/x|../../etc|."
).split("|")
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 1400, 255, 256, 4095, 65535, 65536, 2**31, 2**32, 2**53),
    *(2**64, -(2**63), 10**400, 1.5, -0.0, 1e300),
    *(float("nan"), float("inf"), *_TEXTS, "x" * 300, [], {}, [None], [[]], [{}], [5], ["x"]),
    *([["10.0.0.1"]], {"a": 1}, {"\ud800": "x"}, {"": None}, {"id": 5}, [{"id": 5}]),
    json.loads("[" * 300 + "]" * 300),
)

_RUNTIME = {
    "mac": "02:00:00:00:00:01",
    "ips": ["10.0.0.9/24"],
    "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 1_000_000},
    "ipRanges": [[{"subnet": "10.3.0.0/24", "rangeStart": "10.3.0.5", "gateway": "10.3.0.1"}]],
    "dns": {"servers": ["10.0.0.53"], "searches": ["x"], "options": ["y"]},
    "CNIDeviceInfoFile": "/run/info",
    POD_ANNOTATIONS: {"vmlink.dev/mode": "tap"},
}
_IPAM = {
    "type": "host-local",
    "dataDir": "/nowhere",
    "subnet": "10.1.0.0/24",
    "ranges": [[{"subnet": "fd00::/64", "rangeStart": "fd00::5", "rangeEnd": "fd00::9"}]],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "table": 5, "scope": 0}],
}
_ROUTE = {"dst": "10.7.0.0/16", "gw": "10.0.0.1", "mtu": 1300, "advmss": 1200, "priority": 7}
_RESULT = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": NETNS, "mtu": 1400, "pciID": "x"}
    ],
    "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0, "version": "4"}],
    "routes": [{**_ROUTE, "table": 254, "scope": 0}, {"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["10.0.0.53"], "domain": "x", "search": ["y"], "options": ["z"]},
}
_COMMON = {
    **BASE,
    "runtimeConfig": _RUNTIME,
    "args": {"cni": {"mac": "02:00:00:00:00:02", "ips": ["10.0.0.8"]}},
    "bandwidth": {"egressRate": 8_000_000, "egressBurst": 1_000_000},
    "queues": 2,
    "capabilities": {"mac": True},
    "deviceID": "0000:03:02.1",
    "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
}
_OVS = {"bridge": "br0", "vlan": 5, "trunk": [{"minID": 1, "maxID": 3}], "external_ids": {"a": "b"}}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "linux": {
        **_COMMON,
        "mode": "tc",
        "resultStyle": "plain",
        "redirect": "auto",
        "runtime": "any",
        "linux": {"bridge": "br0", "gateway": True, "vlan": 5},
        "ipam": _IPAM,
        "mtu": 1400,
        "tap": {"owner": 1, "group": 2, "name": "t0"},
        "mac": "02:00:00:00:00:03",
        "dns": _RESULT["dns"],
    },
    "ovs": {**BASE, "mode": "tap", "ovs": _OVS, "placeholder": True},
    "dpdk": {
        **BASE,
        "mode": "vhostuser",
        "ovs": _OVS,
        "vhostuser": {"owner": 1, "group": 2},
        "runtimeConfig": {"CNIDeviceInfoFile": "/run/info"},
    },
    "master": {**BASE, "mode": "macvtap", "master": "nic0", "macvtap": {"mode": "bridge"}},
    "chained": {**BASE, "resultStyle": "tc-redirect-tap", "prevResult": _RESULT},
}
KUBEOVN: dict[str, Any] = {
    **BASE,
    "ovs": {"bridge": "br-int", "ovn": True},
    "mode": "tap",
    "kubeovn": {"provider": "ovn", "routes": [{"dst": "10.9.0.0/16", "gw": "10.16.0.9"}]},
}
ANNOTATIONS: dict[str, Any] = kubeovn_annotations(
    routes='[{"dst": "10.8.0.0/16", "gw": "10.16.0.9"}]',
    default_route="true",
    vlan_id="5",
    latency="0",
    virtualmachine="vm",
    **{f"{way}_{what}": "8" for way in ("ingress", "egress") for what in ("rate", "burst")},
)
IPAM_RESULT = {key: value for key, value in _RESULT.items() if key != "interfaces"}
SOCKET: dict[str, Any] = {
    "cni_type": "kube-ovn",
    "pod_name": "web",
    "pod_namespace": "shop",
    "container_id": "c1",
    "net_ns": NETNS,
    "if_name": "eth0",
    "provider": "ovn",
    "deviceID": "",
    "routes": [{"dst": "10.8.0.0/16", "gw": "10.16.0.9"}],
    "dns": _RESULT["dns"],
    "vhost_user_socket_volume_name": "",
}


def places(document: Any, where: Path = ()) -> Iterator[Path]:
    """Every value of a document by its path, and an unknown key in each object."""
    if isinstance(document, dict):
        yield (*where, "unknown")
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in pairs:
        yield (*where, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*where, key))


def changed(document: Any, *changes: tuple[Path, Any]) -> Any:
    """A copy with other values at some paths; one that an earlier change has removed is skipped."""
    for path, value in changes:
        document = _changed(document, path, value)
    return document


def _changed(document: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(document, dict) and (key in document or not rest):
        return {**document, key: _changed(document.get(key), rest, value)}
    if isinstance(document, list) and isinstance(key, int) and key < len(document):
        return [*document[:key], _changed(document[key], rest, value), *document[key + 1 :]]
    return document


def _networks() -> PodNetworks:
    pods = Pods(Kubernetes(kubeconfig="/x"), lambda _: None)
    pods.report("")
    pods.replace([Pod("shop", "web", "u1", ANNOTATIONS)])
    return PodNetworks(rules(), pods)


NETWORKS = _networks()
DELETED = 16  # one of so many inputs is also a DEL's, which reads them many times


def read_configuration(conf: Mapping[str, Any]) -> None:
    """ADD, and for some DEL and GC, with this configuration. Raises ADD's VmlinkError."""
    stdin = json.dumps(conf).encode()
    if zlib.crc32(stdin) % DELETED == 0:
        delete(spec.parse({**ENV, "CNI_COMMAND": "DEL"}, stdin))
        with refusals():
            collect(spec.parse({**ENV, "CNI_COMMAND": "GC"}, stdin))
    attach(spec.parse({**ENV, "CNI_COMMAND": "ADD"}, stdin))


def delete(request: Request) -> None:
    possible = NETWORKS.possible(request)
    plans = union(MODES[each.mode].plan(KEY, each) for each in possible)
    Plan.from_json(json.loads(json.dumps(plans.to_json())))


def collect(request: Request) -> None:
    network.valid_attachments(request.conf)
    assert delegate.Call(request.conf["name"], request.conf).type


@contextmanager
def refusals() -> Iterator[None]:
    """Any coded error will do."""
    with suppress(VmlinkError):
        yield


def attach(request: Request, given: Result | None = None) -> Result:
    conf = NETWORKS.of(request, Cancel(0))
    if given is None:
        given = leased(conf, request)
    mode = MODES[conf.mode]
    cx = context(*FACTS, addresses=given)
    result = build_result(mode, conf, cx, NETNS)
    show(json.dumps(build_device(mode, conf, cx, result, NETNS)))
    for version in results.VERSIONS:
        json.dumps(results.dump(result, version)).encode()
    results.load(results.dump(result, results.VERSIONS[-1]))
    encode(mode.plan(KEY, conf), conf, given)
    if conf.prev:
        with refusals():
            check.check_result(conf.prev, KEY.ifname, results.dump(result, "1.1.0"))
    return result


@cache
def show(text: str) -> None:
    """The device in every format; most inputs have the same."""
    if device := json.loads(text):
        for form in FORMATS.values():
            with refusals():
                form([Device.from_json(device)], True).encode()


def leased(conf: NetConf, request: Request) -> Result:
    """The first addresses of host-local's ranges, or kube-ovn's."""
    if conf.lease:
        return Result(ips=conf.lease.ips, routes=conf.lease.routes)
    if conf.ipam != "host-local":
        return Result()
    hostlocal.requested(request.conf, request.args)
    hostlocal.directory_of(conf.network, request.conf)
    ipam = hostlocal.section(request.conf)
    ranges = [ranges[0] for ranges in hostlocal.range_sets(request.conf)]
    ips = tuple(IP(f"{r.address(r.first)}/{r.prefix}", str(r.gateway)) for r in ranges)
    routes = results.load({"routes": ipam.get("routes")}, "ipam").routes
    return Result(ips=ips, routes=routes, dns=hostlocal.resolv_conf(ipam))


def encode(plan: Plan, conf: NetConf, given: Result) -> None:
    """What goes to the kernel, into the record and into Open vSwitch's database."""
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    for ip in given.ips:
        rtnl_encode.add_address(3, ip.address)
    for route in given.routes:
        fields = {k: v for k, v in vars(route).items() if k not in ("dst", "gw")}
        route_encode.add_route(route.dst, index=3, gateway=route.gw or None, **fields)
    for limit in limits(rates_of(conf.bandwidth)):
        with refusals():
            limit.tbf(3, 1 << 16, 1400)
    for step in plan.steps:
        if isinstance(step, OvsPort):
            rows = Rows("o", KEY).insert(step._port(context(*FACTS)))
            json.dumps(rows, ensure_ascii=False).encode()


def read_annotations(annotations: Mapping[str, Any]) -> None:
    """ADD for a pod with these annotations. Raises VmlinkError."""
    read_configuration({**KUBEOVN, "runtimeConfig": {POD_ANNOTATIONS: annotations}})


def read_network_of_kubeovn(conf: Mapping[str, Any]) -> None:
    """ADD in this network for a pod with annotations. Raises VmlinkError."""
    read_configuration({**conf, "runtimeConfig": {POD_ANNOTATIONS: ANNOTATIONS}})


def read_ipam_result(data: Mapping[str, Any]) -> None:
    """ADD with a result of an executed plugin. Raises VmlinkError."""
    conf = {**BASE, "linux": {"bridge": "br0"}, "ipam": {"type": "x"}}
    request = spec.parse({**ENV, "CNI_COMMAND": "ADD"}, json.dumps(conf).encode())
    attach(request, delegate.read_result("x", json.dumps(data).encode()))


_SERVER = KubeOvnServer(
    None,  # type: ignore[arg-type]  # only its frames are made
    NETWORKS,
    KubeOvnSocket(network={"ovs": {"bridge": "br-int"}, "mode": "tap"}),
    1,
)


def read_socket(body: Mapping[str, Any]) -> None:
    """ADD by kube-ovn's plugin. Raises VmlinkError."""
    call = CniRequest.parse(json.dumps(body).encode())
    assert call.key.digest
    if call.net_ns != NETNS:
        assert descriptor(call.net_ns) is None
    if call.may_be_ours:
        for verb in ("DEL", "ADD"):
            frame = _SERVER._frame(verb, call)
            request = spec.parse(frame.env, frame.stdin)
        _response(results.dump(attach(request), "1.1.0"))


Reader = Callable[[Mapping[str, Any]], None]
INPUTS: dict[str, tuple[Reader, Mapping[str, Any]]] = {
    **{kind: (read_configuration, conf) for kind, conf in CONFIGURATIONS.items()},
    "kubeovn": (read_network_of_kubeovn, KUBEOVN),
    "annotations": (read_annotations, ANNOTATIONS),
    "ipam result": (read_ipam_result, IPAM_RESULT),
    "kube-ovn's socket": (read_socket, SOCKET),
}
