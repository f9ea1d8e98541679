"""What a pod decides of its network's configuration: its mode, and what kube-ovn gave it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cni.cancel import Cancel
from cni.config import network as config
from cni.config.network import MODES, RUNTIMES, Chosen, NetConf
from cni.config.readers import obj
from cni.config.settings import Kubernetes
from cni.config.uplinks import OvsUplink
from cni.errors import BadConfig, BadEnvironment
from cni.kubeovn import annotations as assignment
from cni.kubeovn import open_pods
from cni.kubeovn.annotations import Assignment, Wanted
from cni.kubeovn.pods import Pod, PodName, Pods
from cni.spec.types import Lease, Request

# The capability by which containerd and CRI-O tell them. Neither tells the runtime class.
TOLD = "io.kubernetes.cri.pod-annotations"
_ANNOTATION = f"annotation {assignment.MODE}"


class PodConfigs:
    """The configuration of one request. `classes` maps runtime classes to modes."""

    def __init__(self, pods: Pods | None = None, classes: Mapping[str, str] | None = None) -> None:
        self.pods = pods or open_pods(Kubernetes())
        self._classes = classes or {}

    def of(self, request: Request, cancel: Cancel) -> NetConf:
        """Waits for what the pod must have first. Raises what config.parse and Pods.wait do, and
        TryAgain for an annotation that is wrong."""
        section = config.kubeovn(request.conf)
        wanted = Wanted(section.provider, _ifname(request)) if section else None
        pod = self._pod(request, wanted, cancel)
        conf = config.parse(request, self.chosen(pod))
        if wanted is None:
            return conf
        return _assigned(conf, assignment.parse(pod.annotations, wanted), request)

    def chosen(self, pod: Pod) -> Chosen | None:
        """The mode that the pod has instead of its network's. Raises BadConfig."""
        return _chosen(pod, self._classes)

    def possible(self, request: Request) -> tuple[NetConf, ...]:
        """The network's own, and those that a pod may have had instead."""
        conf = config.parse(request)
        if not (self._classes or conf.kubeovn or _told(request) is not None):
            return (conf,)
        usable = [m for m in RUNTIMES[conf.runtime] if conf.uplink.kind in MODES[m]]
        others = [m for m in usable if m != conf.mode]
        return conf, *(config.parse(request, Chosen(mode, "mode")) for mode in others)

    def _pod(self, request: Request, wanted: Wanted | None, cancel: Cancel) -> Pod:
        told = Pod(annotations=assignment.needed(_told(request) or {}))
        name = _name(request, required=wanted is not None)
        complete = wanted is None or not assignment.missing(told.annotations, wanted)
        if name is None or (complete and not self._classes):
            return told
        uid = request.args.get("K8S_POD_UID", "")
        if wanted is None or complete:
            found = self.pods.wait(name, uid, lambda _: "", cancel)
            return replace(found, annotations={**found.annotations, **told.annotations})
        return self.pods.wait(
            name, uid, lambda pod: assignment.missing(pod.annotations, wanted), cancel
        )


def _chosen(pod: Pod, classes: Mapping[str, str]) -> Chosen | None:
    """The annotation comes before the runtime class. Raises BadConfig."""
    if mode := pod.annotations.get(assignment.MODE):
        if mode not in MODES:
            raise BadConfig(f"{_ANNOTATION}: expected one of {', '.join(MODES)}, found {mode!r}")
        return Chosen(mode, _ANNOTATION)
    if pod.name and pod.runtime_class in classes:
        where = f"vmlinkd's runtime_classes.{pod.runtime_class}"
        return Chosen(classes[pod.runtime_class], where)
    return None


def _assigned(conf: NetConf, given: Assignment, request: Request) -> NetConf:
    assert isinstance(conf.uplink, OvsUplink), "config.parse refuses any other"
    assert conf.kubeovn
    namespace, pod = _name(request, required=True) or ("", "")
    if conf.mac and conf.mac != given.mac:
        raise BadConfig(
            f"mac: {conf.mac} is asked for, but kube-ovn gave {given.mac}, and OVN lets no other "
            "pass; ask kube-ovn for it by the pod's annotation, or leave it out"
        )
    port = given.port(pod, namespace)
    ids = {
        "iface-id": port,
        "vendor": "kube-ovn",
        "pod_name": given.vm or pod,
        "pod_namespace": namespace,
        "pod_netns": request.netns_path,
        "ip": ",".join(ip.address.partition("/")[0] for ip in given.ips),
    }
    uplink = replace(
        conf.uplink,
        vlan=conf.uplink.vlan or given.vlan,
        external_ids={**conf.uplink.external_ids, **{k: v for k, v in ids.items() if v}},
    )
    own = assignment.routes_of("kubeovn.routes", list(conf.kubeovn.routes), given.ips)
    return replace(
        conf,
        mac=given.mac,
        uplink=uplink,
        bandwidth=given.bandwidth or conf.bandwidth,
        lease=Lease(port, given.logical_switch, given.ips, (*own, *given.routes)),
    )


def _told(request: Request) -> Mapping[str, str] | None:
    """The pod's annotations, where the runtime tells them. Raises BadConfig."""
    given = obj(request.conf, "runtimeConfig")
    if TOLD not in given:
        return None
    told = obj(given, TOLD, "runtimeConfig.")
    for key, value in told.items():
        if not isinstance(value, str):
            raise BadConfig(f"runtimeConfig.{TOLD}.{key}: expected a text, found {value!r}")
    return told


def _ifname(request: Request) -> str:
    assert request.key
    return request.key.ifname


def _name(request: Request, *, required: bool) -> PodName | None:
    namespace, name = (request.args.get(f"K8S_POD_{what}") for what in ("NAMESPACE", "NAME"))
    if namespace and name:
        return namespace, name
    if required:
        raise BadEnvironment(
            "CNI_ARGS: K8S_POD_NAME and K8S_POD_NAMESPACE are required for a network of kube-ovn"
        )
    return None
