"""Values of the CNI contract: which interface is the pod's, which gateway a route gets."""

from __future__ import annotations

import pytest

from cni.errors import BadConfig
from cni.spec.request import PER_CALL_KEYS
from cni.spec.types import IP, Interface, Result, family_of, gateways_by_family

HOST = Interface("eth0")  # of the same name, in the host's namespace
POD = Interface("eth0", sandbox="/run/netns/x")


def test_the_pods_interface_is_the_one_with_a_sandbox() -> None:
    assert Result((HOST, POD)).position_of("eth0") == 1


@pytest.mark.parametrize("interfaces", [(POD,), (HOST, POD)])
def test_no_such_interface(interfaces: tuple[Interface, ...]) -> None:
    with pytest.raises(BadConfig, match=r"^prevResult: has no interface net1 with a sandbox; "):
        Result(interfaces).position_of("net1")


@pytest.mark.parametrize("interfaces", [(), (HOST,), (Interface("cali0"), HOST)])
def test_a_result_without_a_sandbox_is_about_the_only_interface(
    interfaces: tuple[Interface, ...],
) -> None:
    ips = (IP("10.0.0.2/24"), IP("fd00::2/64", interface=0))
    found = Result(interfaces, ips)
    assert found.position_of("eth0") is None
    assert found.ips_of(None) == ips


def test_addresses_of_one_interface() -> None:
    ips = (IP("10.0.0.2/24", interface=1), IP("10.0.0.3/24"), IP("10.0.0.4/24", interface=0))
    assert Result((HOST, POD), ips).ips_of(1) == ips[:2]


def test_the_first_gateway_of_a_family_counts() -> None:
    ips = (
        IP("10.0.0.2/24"),
        IP("10.1.0.2/24", "10.1.0.1"),
        IP("10.2.0.2/24", "10.2.0.1"),
        IP("fd00::2/64", "fd00::1"),
    )
    gateways = gateways_by_family(ips)
    assert gateways == {4: "10.1.0.1", 6: "fd00::1"}
    assert gateways[family_of("0.0.0.0/0")] == "10.1.0.1"
    assert gateways[family_of("::/0")] == "fd00::1"
    assert gateways_by_family(()) == {}


def test_keys_of_one_call_are_not_the_networks() -> None:
    assert {"prevResult", "runtimeConfig", "args"} <= PER_CALL_KEYS
    assert not {"name", "type", "ipam", "capabilities"} & PER_CALL_KEYS
