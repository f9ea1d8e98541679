"""What an ADD returns to the runtime and records for the VMM, in both styles of result."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cni.attach.facts import Fact
from cni.daemon.result_builder import build_device, build_result
from cni.errors import BadConfig
from cni.modes import MODES
from cni.modes.steps.links import Nic, TapMac
from cni.spec import result as results
from cni.spec.types import IP, Interface, Result, Route
from tests.unit.purekit import KEY, NETNS, context, netconf

MAC, TAP_MAC = "02:00:00:00:00:01", KEY.mac("tap")
FACTS: tuple[Fact, ...] = (Nic(MAC, 1400), TapMac(TAP_MAC))
LINUX = {"linux": {"bridge": "br0"}, "ipam": {"type": "host-local"}}
GIVEN = Result(
    ips=(IP("10.0.0.2/24", "10.0.0.1"), IP("fd00::2/64", "fd00::1", 7), IP("10.1.0.2/24")),
    routes=(Route("0.0.0.0/0"), Route("::/0"), Route("10.9.0.0/16", "10.0.0.9")),
    dns={"nameservers": ["10.0.0.1"]},
)
POD = Interface("eth0", MAC, 1400, NETNS)
TAP = Interface(KEY.tap_link, TAP_MAC, 1400, NETNS)
PLAIN_TAP = replace(TAP, sandbox="")  # Multus would list it as an interface of the pod's
HOST = Interface(KEY.host_link, KEY.port_mac, 1400)
PSEUDO = Interface(KEY.tap_link, MAC, 0, KEY.container_id)

OTHER = Interface("br0", "02:00:00:00:00:b0")
PREV = Result(
    (OTHER, Interface("eth0", MAC, sandbox=NETNS), Interface("eth1", sandbox=NETNS)),
    (IP("10.0.0.2/24", "10.0.0.1", 1), IP("10.5.0.2/24", "", 2), IP("fd00::2/64", "", 1)),
    (Route("0.0.0.0/0"),),
    {"search": ["example"]},
)


def told(conf: dict[str, Any]) -> tuple[Result, dict[str, Any]]:
    parsed, cx = netconf(**conf), context(*FACTS, addresses=GIVEN)
    mode = MODES[parsed.mode]
    made = build_result(mode, parsed, cx, NETNS)
    return made, build_device(mode, parsed, cx, made, NETNS)


def chained(prev: Result = PREV, **conf: Any) -> dict[str, Any]:
    return {"prevResult": results.dump(prev, "1.1.0"), **conf}


@pytest.mark.parametrize(
    ("mode", "interfaces"), [("tc", (POD, HOST, PLAIN_TAP)), ("veth", (POD, HOST))]
)
def test_plain(mode: str, interfaces: tuple[Interface, ...]) -> None:
    made, _ = told({**LINUX, "mode": mode})
    assert made.interfaces == interfaces
    assert made.ips == tuple(replace(ip, interface=0) for ip in GIVEN.ips)
    assert (made.routes, made.dns) == (GIVEN.routes, GIVEN.dns)


@pytest.mark.parametrize("mode", ["tc", "veth", "chained"])
def test_multus_finds_the_pods_interface_alone(mode: str) -> None:
    """Multus takes every interface with a sandbox for one of the pod's."""
    prev = replace(PREV, interfaces=PREV.interfaces[:2], ips=PREV.ips[:1])
    made, _ = told(chained(prev) if mode == "chained" else {**LINUX, "mode": mode})
    assert [i.name for i in made.interfaces if i.sandbox] == ["eth0"]


def test_dns_of_the_configuration_wins() -> None:
    assert told({**LINUX, "dns": {"search": ["x"]}})[0].dns == {"search": ["x"]}


def test_chained_adds_to_what_others_made() -> None:
    made, _ = told(chained())
    assert made == replace(PREV, interfaces=(*PREV.interfaces, PLAIN_TAP))


def test_a_tap_by_its_own_name() -> None:
    made, device = told({**LINUX, "tap": {"name": "tap0"}, "queues": 3})
    assert made.interfaces[2].name == device["tap"] == "tap0"
    assert device["queues"] == 3


def test_tc_redirect_tap() -> None:
    made, _ = told({**LINUX, "resultStyle": "tc-redirect-tap"})
    assert made.interfaces == (POD, HOST, TAP, PSEUDO)
    assert made.ips == tuple(replace(ip, interface=n) for n in (0, 3) for ip in GIVEN.ips)


def test_tc_redirect_tap_chained() -> None:
    made, _ = told(chained(resultStyle="tc-redirect-tap"))
    assert made.interfaces == (*PREV.interfaces, TAP, PSEUDO)
    guests = tuple(replace(ip, interface=4) for ip in PREV.ips if ip.interface == 1)
    assert made.ips == PREV.ips + guests
    assert len(guests) == 2
    assert (made.routes, made.dns) == (PREV.routes, PREV.dns)


@pytest.mark.parametrize("style", ["plain", "tc-redirect-tap"])
def test_the_device_tells_a_guest_all_it_needs(style: str) -> None:
    _, device = told({**LINUX, "resultStyle": style})
    assert device == {
        "ifname": KEY.ifname,
        "neighbours": (),
        "nameservers": ("10.0.0.1",),
        "search": (),
        "id": KEY.tap_link,
        "kind": "tap",
        "netns": NETNS,
        "tap": KEY.tap_link,
        "path": "",
        "offload": True,
        "mac": MAC,
        "mtu": 1400,
        "queues": 1,
        "addresses": ("10.0.0.2/24", "fd00::2/64", "10.1.0.2/24"),
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "10.0.0.1"},
            {"dst": "::/0", "gw": "fd00::1"},
            {"dst": "10.9.0.0/16", "gw": "10.0.0.9"},
        ],
    }


def test_the_domain_is_searched_where_there_is_no_search_list() -> None:
    for dns, search in (
        ({"domain": "example.org"}, ("example.org",)),
        ({"domain": "example.org", "search": ["a.org", "b.org"]}, ("a.org", "b.org")),
    ):
        assert told({**LINUX, "dns": dns})[1]["search"] == search


def test_the_device_has_the_addresses_of_its_own_interface_only() -> None:
    assert told(chained())[1]["addresses"] == ("10.0.0.2/24", "fd00::2/64")


def test_addresses_that_name_no_interface_are_the_pods() -> None:
    ips = (IP("10.0.0.2/24"), IP("10.5.0.2/24", interface=2))
    assert told(chained(replace(PREV, ips=ips)))[1]["addresses"] == ("10.0.0.2/24",)


def test_a_plain_container_has_no_device() -> None:
    assert told({**LINUX, "mode": "veth"})[1] == {}


@pytest.mark.parametrize("style", ["plain", "tc-redirect-tap"])
def test_a_prev_result_of_another_interface_is_refused(style: str) -> None:
    prev = Result((Interface("eth1", sandbox=NETNS),))
    with pytest.raises(BadConfig, match="prevResult: has no interface eth0"):
        told(chained(prev, resultStyle=style))


@pytest.mark.parametrize("interfaces", [(), (OTHER,)], ids=["0.3.1", "Calico"])
@pytest.mark.parametrize("index", [None, 0])
def test_a_prev_result_without_a_sandbox(
    interfaces: tuple[Interface, ...], index: int | None
) -> None:
    prev = Result(interfaces, (IP("10.0.0.2/24", interface=index), IP("fd00::2/64")))
    here = len(interfaces)
    own = tuple(replace(ip, interface=here) for ip in prev.ips)
    made, device = told(chained(prev))
    assert made == Result((*interfaces, POD, replace(TAP, sandbox="")), own)
    assert (device["mac"], device["addresses"]) == (MAC, ("10.0.0.2/24", "fd00::2/64"))
    made, device = told(chained(prev, resultStyle="tc-redirect-tap"))
    assert made.interfaces == (*interfaces, POD, TAP, PSEUDO)
    assert made.ips == (*own, *(replace(ip, interface=here + 2) for ip in prev.ips))
    assert device["addresses"] == ("10.0.0.2/24", "fd00::2/64")
