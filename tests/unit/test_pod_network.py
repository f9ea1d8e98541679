"""What a pod's annotations change in its network's configuration. There is no API server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cni.cancel import Cancel
from cni.config.network import NetConf
from cni.config.settings import Kubernetes
from cni.config.uplinks import OvsUplink
from cni.errors import BadConfig, BadEnvironment, TryAgain
from cni.kubeovn import open_pods
from cni.kubeovn.pod_annotations import MODE
from cni.kubeovn.pod_network import PodNetworks
from cni.modes import rules
from cni.spec.capabilities import POD_ANNOTATIONS
from cni.spec.types import AttachmentKey, Bandwidth, Lease, Request
from tests.unit.purekit import BASE, POD_MAC, kubeovn_annotations

ARGS = {"K8S_POD_NAME": "web", "K8S_POD_NAMESPACE": "shop"}
NETWORK: dict[str, Any] = {**BASE, "ovs": {"bridge": "br-int"}}
OVN: dict[str, Any] = {"kubeovn": {"provider": "ovn"}}


def request(told: Any = None, args: dict[str, str] = ARGS, **conf: Any) -> Request:
    runtime = {**conf.pop("runtimeConfig", {}), **({} if told is None else {POD_ANNOTATIONS: told})}
    full = {**NETWORK, **conf, "runtimeConfig": runtime}
    return Request("ADD", "1.1.0", full, b"", {}, args, AttachmentKey("c1", "eth0"), "/n")


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def networks(classes: dict[str, str] | None = None) -> PodNetworks:
    return PodNetworks(rules(), open_pods(Kubernetes()), classes)


def of(told: Any = None, args: dict[str, str] = ARGS, **conf: Any) -> NetConf:
    return networks().of(request(told, args, **conf), Cancel(1))


def test_all_of_an_assignment() -> None:
    routes = [{"dst": "10.9.0.0/16"}]
    found = of(kubeovn_annotations(ingress_rate="8"), kubeovn={"provider": "ovn", "routes": routes})
    assert found.mac == POD_MAC
    assert found.bandwidth == Bandwidth(8_000_000, 1_048_576)
    assert isinstance(found.uplink, OvsUplink)
    assert found.uplink.external_ids == {
        "iface-id": "web.shop",
        "vendor": "kube-ovn",
        "pod_name": "web",
        "pod_namespace": "shop",
        "pod_netns": "/n",
        "ip": "10.16.0.5",
    }
    assert isinstance(found.lease, Lease)
    assert (found.lease.holder, found.lease.switch) == ("web.shop", "ovn-default")
    assert [r.dst for r in found.lease.routes] == ["0.0.0.0/0", "10.9.0.0/16"]


def test_routes_replace_one_another_as_kube_ovn_makes_them() -> None:
    """The gateway's default route, then the network's routes, then those of the pod."""
    own = [{"dst": "0.0.0.0/0", "gw": "10.16.0.8"}, {"dst": "10.9.0.0/16", "gw": "10.16.0.8"}]
    pods = json.dumps([{"dst": "10.9.0.0/16", "gw": "10.16.0.9"}])
    found = of(kubeovn_annotations(routes=pods), kubeovn={"provider": "ovn", "routes": own})
    assert found.lease
    assert [(r.dst, r.gw) for r in found.lease.routes] == [
        ("0.0.0.0/0", "10.16.0.8"),
        ("10.9.0.0/16", "10.16.0.9"),
    ]


def test_the_networks_own_limits_and_vlan_stay_where_the_pod_has_none() -> None:
    limit = {"ingressRate": 8_000_000, "ingressBurst": 8_000_000}
    found = of(kubeovn_annotations(), **OVN, bandwidth=limit, ovs={"bridge": "br-int", "vlan": 5})
    assert found.bandwidth == Bandwidth(8_000_000, 8_000_000)
    assert isinstance(found.uplink, OvsUplink)
    assert found.uplink.vlan == 5


def test_a_mac_that_ovn_would_not_let_pass() -> None:
    assert of(kubeovn_annotations(), **OVN, runtimeConfig={"mac": POD_MAC}).mac == POD_MAC
    with pytest.raises(BadConfig, match=r"^mac: 02:.* OVN lets no other pass"):
        of(kubeovn_annotations(), **OVN, runtimeConfig={"mac": "02:00:00:00:00:01"})


def test_routes_of_the_network_that_are_none() -> None:
    with pytest.raises(BadConfig, match=r"^kubeovn\.routes\[0\]: expected"):
        of(kubeovn_annotations(), kubeovn={"provider": "ovn", "routes": [5]})


def test_what_is_not_told_needs_the_api_server() -> None:
    unassigned: list[dict[str, str] | None] = [None, {}, kubeovn_annotations(allocated=None)]
    for told in unassigned:
        with pytest.raises(TryAgain, match=r"^kubernetes\.kubeconfig: there are no credentials"):
            of(told, **OVN)


def test_who_the_pod_is_must_be_known() -> None:
    with pytest.raises(BadEnvironment, match="K8S_POD_NAME and K8S_POD_NAMESPACE are required"):
        of(kubeovn_annotations(), {}, **OVN)


def test_a_network_that_is_not_kube_ovns_asks_nobody() -> None:
    assert of(None, {}).mode == "tc"
    assert of({MODE: "veth"}, {}).mode == "veth"
    assert of({"unheard": "of"}).mode == "tc"


@pytest.mark.parametrize("told", [5, {"a": 5}, ["a"]])
def test_annotations_that_are_none(told: Any) -> None:
    with pytest.raises(BadConfig, match=rf"^runtimeConfig\.{POD_ANNOTATIONS}"):
        of(told)


def test_the_modes_that_a_pod_may_have_had() -> None:
    assert [c.mode for c in networks().possible(request())] == ["tc"]
    every = {"tc", "veth", "tap", "vhostuser"}
    for given in (request({}), request(**OVN)):
        found = networks().possible(given)
        assert (found[0].mode, {c.mode for c in found}) == ("tc", every)
    classes = networks({"kata": "tap"})
    assert {c.mode for c in classes.possible(request(mode="tap", placeholder=True))} == every
