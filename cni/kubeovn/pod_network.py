"""What a pod decides of its network's configuration: its mode, and what kube-ovn chose for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from cni.cancel import Cancel
from cni.config import leftovers, network
from cni.config.mode_rules import Rules
from cni.config.network import Chosen, NetConf
from cni.config.readers import as_text, obj
from cni.config.uplinks import OvsUplink
from cni.errors import BadConfig, BadEnvironment, VmlinkError
from cni.kubeovn import pod_annotations
from cni.kubeovn.pod_annotations import Assignment, Wanted
from cni.kubeovn.pods import Pod, PodName, Pods
from cni.spec.capabilities import POD_ANNOTATIONS
from cni.spec.types import Lease, Request, is_plain

log = logging.getLogger("vmlink")

_MODE = f"annotation {pod_annotations.MODE}"


class PodNetworks:
    """The configuration of one request, with the pod's part.

    `rules` are those of the modes; `classes` maps runtime classes to modes.
    """

    def __init__(self, rules: Rules, pods: Pods, classes: Mapping[str, str] | None = None) -> None:
        self.rules = rules
        self.pods = pods
        self._classes = classes or {}

    def of(self, request: Request, cancel: Cancel) -> NetConf:
        """Return the configuration, once the pod has what it must have first.

        Raises what network.parse and Pods.wait do, and TryAgain for an annotation that is wrong.
        """
        section = network.kubeovn(request.conf)
        wanted = Wanted(section.provider, _ifname(request)) if section else None
        pod = self._pod(request, wanted, cancel)
        conf = network.parse(request, self.rules, self.chosen(pod))
        if wanted is None:
            return conf
        own = section.routes if section else ()
        return _assigned(conf, pod_annotations.parse(pod.annotations, wanted, own), request)

    def parse(self, request: Request) -> NetConf:
        """Return the network's own configuration. Raises what network.parse does."""
        return network.parse(request, self.rules)

    def chosen(self, pod: Pod) -> Chosen | None:
        """Return the mode that the pod has instead of its network's. Raises BadConfig.

        Its annotation comes before its runtime class.
        """
        if mode := pod.annotations.get(pod_annotations.MODE):
            if mode not in self.rules:
                known = ", ".join(self.rules)
                raise BadConfig(f"{_MODE}: expected one of {known}, found {mode!r}")
            return Chosen(mode, _MODE)
        if pod.name and pod.runtime_class in self._classes:
            where = f"vmlinkd's runtime_classes.{pod.runtime_class}"
            return Chosen(self._classes[pod.runtime_class], where)
        return None

    def possible(self, request: Request) -> tuple[NetConf, ...]:
        """Return the network's own configuration, and those that a pod may have had instead.

        What an ADD would be refused for is logged and left out.
        """
        try:
            return self._possible(request)
        except VmlinkError as e:
            log.warning("%s: undone without what cannot be read: %s", request.key, e.msg)
            return leftovers.possible(request, self.rules)

    def _possible(self, request: Request) -> tuple[NetConf, ...]:
        conf = self.parse(request)
        if not (self._classes or conf.kubeovn or _annotations(request) is not None):
            return (conf,)
        others = [
            mode
            for mode, rules in self.rules.items()
            if conf.runtime in rules.runtimes
            and conf.uplink.kind in rules.uplinks
            and mode != conf.mode
        ]
        chosen = (Chosen(mode, "mode") for mode in others)
        return conf, *(network.parse(request, self.rules, each) for each in chosen)

    def ready(self, conf: NetConf) -> None:
        """Answer STATUS. Raises NotReady when the API server is needed and does not answer."""
        if conf.kubeovn:
            self.pods.ready()

    def _pod(self, request: Request, wanted: Wanted | None, cancel: Cancel) -> Pod:
        passed = Pod(annotations=pod_annotations.needed(_annotations(request) or {}))
        name = _name(request, required=wanted is not None)
        complete = wanted is None or not pod_annotations.missing(passed.annotations, wanted)
        if name is None or (complete and not self._classes):
            return passed
        uid = request.args.get("K8S_POD_UID", "")
        if wanted is None or complete:
            pod = self.pods.wait(name, uid, lambda _: "", cancel)
            return replace(pod, annotations={**pod.annotations, **passed.annotations})
        return self.pods.wait(
            name, uid, lambda pod: pod_annotations.missing(pod.annotations, wanted), cancel
        )


def _assigned(conf: NetConf, assignment: Assignment, request: Request) -> NetConf:
    assert isinstance(conf.uplink, OvsUplink), "network.parse refuses any other"
    namespace, pod = _name(request, required=True) or ("", "")
    if conf.mac and conf.mac != assignment.mac:
        raise BadConfig(
            f"mac: {conf.mac} is asked for, but kube-ovn chose {assignment.mac}, and OVN lets no "
            "other pass; ask kube-ovn for it by the pod's annotation, or leave it out"
        )
    port = assignment.port(pod, namespace)
    ids = {
        "iface-id": port,
        "vendor": "kube-ovn",
        "pod_name": assignment.vm or pod,
        "pod_namespace": namespace,
        "pod_netns": request.netns_path,
        "ip": ",".join(ip.bare for ip in assignment.ips),
    }
    uplink = replace(
        conf.uplink,
        vlan=conf.uplink.vlan or assignment.vlan,
        external_ids={
            **conf.uplink.external_ids,
            **{k: v for k, v in ids.items() if v and is_plain(v)},
        },
    )
    return replace(
        conf,
        mac=assignment.mac,
        uplink=uplink,
        bandwidth=assignment.bandwidth or conf.bandwidth,
        lease=Lease(port, assignment.logical_switch, assignment.ips, assignment.routes),
    )


def _annotations(request: Request) -> Mapping[str, str] | None:
    """Return the pod's annotations, where the runtime passes them. Raises BadConfig."""
    runtime = obj(request.conf, "runtimeConfig")
    if POD_ANNOTATIONS not in runtime:
        return None
    passed = obj(runtime, POD_ANNOTATIONS, "runtimeConfig.")
    for key, value in passed.items():
        as_text(value, f"runtimeConfig.{POD_ANNOTATIONS}.{key}")
    return passed


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
