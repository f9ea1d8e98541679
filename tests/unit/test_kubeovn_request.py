"""A request of kube-ovn's plugin: what is read of it, and what is named when it is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cni.daemon.kubeovn_server import CniRequest
from cni.errors import CannotDecode

POD = {"pod_name": "web", "pod_namespace": "shop"}


def parse(content: Any) -> CniRequest:
    return CniRequest.parse(json.dumps(content).encode())


def test_what_is_absent_or_null_has_a_default() -> None:
    found = parse({**POD, "routes": None, "dns": None, "if_name": "", "unknown": {}})
    assert found == CniRequest(pod_name="web", pod_namespace="shop")
    assert found.key.ifname == "eth0"


@pytest.mark.parametrize(
    ("change", "ours"),
    [
        ({}, True),
        ({"provider": ""}, False),
        ({"cni_type": "macvlan"}, False),
        ({"deviceID": "0000:00:01.0"}, False),
        ({"vhost_user_socket_volume_name": "v"}, False),
    ],
)
def test_which_ports_may_be_ours(change: dict[str, str], ours: bool) -> None:
    assert parse({**POD, "cni_type": "kube-ovn", "provider": "ovn", **change}).may_be_ours == ours


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "the request's body: expected an object"),
        ({}, "pod_name: expected a name of Kubernetes, found None"),
        ({**POD, "pod_namespace": "a;b"}, "pod_namespace: expected a name of Kubernetes"),
        ({**POD, "routes": "x"}, "routes: expected a list, found 'x'"),
        ({**POD, "dns": []}, "dns: expected an object"),
        ({**POD, "deviceID": 5}, "deviceID: expected a text, found 5"),
    ],
)
def test_what_is_wrong_is_named(content: Any, says: str) -> None:
    with pytest.raises(CannotDecode, match=f"^{says}"):
        parse(content)


def test_what_is_no_json() -> None:
    with pytest.raises(CannotDecode, match=r"^the request's body: not JSON: "):
        CniRequest.parse(b"{")
