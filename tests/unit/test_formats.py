"""Each format of vmlinkctl for the NIC of each mode: golden files, and what is refused and why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from cni.errors import BadDevice
from cni.spec.types import Route
from cni.vmm.device import Device
from cni.vmm.formats import FORMATS, cloud_hypervisor, firecracker, guest, kata, libvirt, qemu

GOLDEN = Path(__file__).parent / "golden"
TC = Device(
    "vlt1",
    "tap",
    "02:00:00:00:00:01",
    1400,
    1,
    netns="/run/netns/x",
    tap="vlt1",
    ifname="eth0",
    addresses=("10.0.0.2/24", "fd00::2/64"),
    routes=(Route("0.0.0.0/0", "10.0.0.1"), Route("::/0", "fd00:1::1")),
    neighbours=(("10.0.0.1", "02:00:00:00:00:b0"),),
    nameservers=("10.0.0.53", "fd00::53", "10.0.0.54", "10.0.0.55"),
    search=("example.org",),
)
MODES = {
    "tc": TC,
    "tap": replace(TC, netns="", queues=2),
    "macvtap": replace(TC, kind="macvtap", tap="", path="/dev/tap131072"),
    "vhostuser": replace(
        TC, id="vlu1", kind="vhostuser", netns="", tap="", path="/run/a,b/sock", queues=2,
        offload=False,
    ),
}  # fmt: skip
REFUSED = {
    ("tc", "libvirt"): "use mode tap or vhostuser",
    ("tc", "kata-dan"): "use mode tap or vhostuser",
    ("tap", "firecracker"): "the tap has 2; set queues to 1",
    ("macvtap", "cloud-hypervisor"): "by vmlinkctl plug --api-socket",
    ("macvtap", "firecracker"): "only has a device node; use mode tc or tap",
    ("macvtap", "libvirt"): "use mode tap or vhostuser",
    ("macvtap", "kata-dan"): "has no macvtap; use mode tap or vhostuser",
    ("vhostuser", "firecracker"): "has no vhost-user network; use mode tc or tap",
}
PAIRS = [(mode, name) for mode in MODES for name in FORMATS]


@pytest.mark.parametrize(("mode", "name"), [p for p in PAIRS if p not in REFUSED])
def test_golden(mode: str, name: str) -> None:
    expected = (GOLDEN / f"{mode}.{name}").read_text()
    assert FORMATS[name]([MODES[mode]], True) + "\n" == expected


@pytest.mark.parametrize(("mode", "name"), REFUSED)
def test_what_cannot_work_is_refused_with_the_reason(mode: str, name: str) -> None:
    with pytest.raises(BadDevice) as refused:
        FORMATS[name]([MODES[mode]], True)
    assert refused.value.msg.startswith(MODES[mode].id + ": ")
    assert REFUSED[mode, name] in refused.value.msg


def test_every_golden_file_is_looked_at() -> None:
    names = {f"{mode}.{name}" for mode, name in PAIRS if (mode, name) not in REFUSED}
    assert {path.name for path in GOLDEN.iterdir()} == names


def test_firecracker_cannot_take_a_nic_without_offload() -> None:
    with pytest.raises(BadDevice, match="userspace-tso-enable"):
        firecracker.network_interface(replace(TC, offload=False))


def test_cloud_init_needs_addresses() -> None:
    with pytest.raises(BadDevice, match="needs an address"):
        guest.cloud_init([replace(TC, addresses=())])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"addresses": ("fd00::2/64",)}, "needs an address"),
        ({"addresses": ("10.0.0.2/24", "10.0.0.3/24")}, "use cloud-init"),
        ({"routes": (Route("10.9.0.0/16", "10.0.0.1"),)}, "use cloud-init"),
        ({"routes": (Route("0.0.0.0/0", "169.254.1.1"),)}, "in the address's own subnet"),
    ],
)
def test_the_kernel_takes_one_address_and_a_default_route(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadDevice, match=message):
        guest.kernel_ip([replace(TC, **change)])


def test_the_kernel_takes_one_interface() -> None:
    with pytest.raises(BadDevice, match="choose by --ifname"):
        guest.kernel_ip([TC, TC])
    alone = replace(TC, routes=(), nameservers=())
    assert guest.kernel_ip([alone]) == "ip=10.0.0.2:::255.255.255.0::eth0:off"


def test_a_gateway_out_of_reach_is_on_the_link() -> None:
    told = yaml.safe_load(guest.cloud_init([TC]))["ethernets"]["eth0"]["routes"]
    assert told[0] == {"to": "0.0.0.0/0", "via": "10.0.0.1"}
    assert told[1] == {"to": "::/0", "via": "fd00:1::1", "on-link": True}


ANY = "0.0.0.0/0"
TYPED = (
    Route("169.254.1.1/32", scope=253),
    Route(ANY, "10.0.0.66", table=100),
    Route(ANY, "10.0.0.9", priority=50),
    Route(ANY, "169.254.1.1", mtu=1300, advmss=1200, priority=7),
    Route(ANY, "10.0.0.8", priority=7),
    Route("10.9.0.0/16", "10.0.0.1", table=254),
)


def test_a_record_keeps_all_of_a_route() -> None:
    device = replace(TC, routes=TYPED)
    assert Device.from_json(json.loads(json.dumps(device.to_json()))) == device


def test_a_record_of_format_1_has_pairs() -> None:
    data = {**TC.to_json(), "routes": [[ANY, "10.0.0.1"], ["10.9.0.0/16", ""]]}
    assert Device.from_json(data).routes == (Route(ANY, "10.0.0.1"), Route("10.9.0.0/16"))


def test_cloud_init_is_told_what_it_can_say() -> None:
    """A route of another table would be the guest's default where cloud-init drops the table."""
    told = yaml.safe_load(guest.cloud_init([replace(TC, routes=TYPED)]))
    assert told["ethernets"]["eth0"]["routes"] == [
        {"to": "169.254.1.1/32", "scope": "link"},
        {"to": ANY, "via": "10.0.0.9", "metric": 50},
        {"to": ANY, "via": "169.254.1.1", "on-link": True, "metric": 7, "mtu": 1300},
        {"to": "10.9.0.0/16", "via": "10.0.0.1"},
    ]


def test_kata_has_the_best_route_to_each_destination() -> None:
    """Its agent knows no table and no metric, and the last of two routes would be the guest's."""
    found = kata.entry(replace(MODES["tap"], routes=TYPED))["network_info"]["routes"]
    keys = ("dest", "gateway", "scope", "flags", "mtu")
    assert [tuple(route[key] for key in keys) for route in found] == [
        ("169.254.1.1/32", "", 253, 0, 0),
        ("", "169.254.1.1", 0, 4, 1300),
        ("10.9.0.0/16", "10.0.0.1", 0, 0, 0),
    ]


def test_the_kernel_takes_the_default_route_of_the_main_table() -> None:
    routes = (TYPED[1], TYPED[2], Route(ANY, "10.0.0.8", priority=7))
    told = guest.kernel_ip([replace(TC, routes=routes, nameservers=())])
    assert told == "ip=10.0.0.2::10.0.0.8:255.255.255.0::eth0:off"
    told = guest.kernel_ip([replace(TC, routes=TYPED[1:2], nameservers=())])
    assert told == "ip=10.0.0.2:::255.255.255.0::eth0:off"


@pytest.mark.parametrize("gateway", ["fd00::1", "fe80::1"])
def test_the_default_route_of_ipv6_is_gateway6(gateway: str) -> None:
    """What tests/clients/test_cloud_init.py renders; a route to ::/0 would become one to ::/64."""
    routes = (Route("::/0", gateway), Route("fd01::/48", "fd00::9"))
    told = yaml.safe_load(guest.cloud_init([replace(TC, routes=routes)]))["ethernets"]["eth0"]
    assert told["gateway6"] == gateway
    assert told["routes"] == [{"to": "fd01::/48", "via": "fd00::9"}]


def test_libvirt_is_told_in_xml_whatever_the_path() -> None:
    path = "/run/<a>&'b'/sock"
    found = ElementTree.fromstring(libvirt.interface(replace(MODES["vhostuser"], path=path)))
    source = found.find("source")
    assert source is not None
    assert source.attrib == {"type": "unix", "path": path, "mode": "server"}


def test_libvirt_gets_a_document_for_each_nic() -> None:
    told = FORMATS["libvirt"]([MODES["tap"], MODES["vhostuser"]], True).splitlines()
    kinds = [ElementTree.fromstring(line).attrib["type"] for line in told]
    assert kinds == ["ethernet", "vhostuser"]


def test_libvirt_has_no_link_to_give_the_mtu_of_vhost_user() -> None:
    """It refuses to start: Cannot set interface MTU on '': No such device."""
    assert ElementTree.fromstring(libvirt.interface(MODES["vhostuser"])).find("mtu") is None
    assert ElementTree.fromstring(libvirt.interface(MODES["tap"])).find("mtu") is not None


def test_cloud_hypervisor_counts_single_queues() -> None:
    assert cloud_hypervisor.by_descriptors(MODES["tap"])["num_queues"] == 4


@pytest.mark.parametrize(
    ("queues", "vhost", "netdev"),
    [
        (1, False, "fd=3"),
        (1, True, "fd=3,vhost=on,vhostfd=4"),
        (2, False, "fds=3:4"),
        (4, True, "fds=3:4:5:6,vhost=on,vhostfds=7:8:9:10"),
    ],
)
def test_qemu_is_told_the_descriptors(queues: int, vhost: bool, netdev: str) -> None:
    told = qemu.cold([replace(TC, queues=queues)], vhost)
    assert told.split()[1] == f"tap,id=vlt1,{netdev}"


def test_qemu_counts_on_from_one_nic_to_the_next() -> None:
    first, second = qemu.cold([MODES["tap"], TC], True).splitlines()
    assert "fds=3:4,vhost=on,vhostfds=5:6" in first
    assert "fd=7,vhost=on,vhostfd=8" in second


def test_each_command_of_hot_plug_but_the_last_can_be_taken_back() -> None:
    commands = qemu.commands(MODES["vhostuser"], [])
    *inverse, last = (qemu.inverse(command) for command in commands)
    assert [i and (i["execute"], i["arguments"]["id"]) for i in inverse] == [
        ("chardev-remove", "vlu1c"),
        ("netdev_del", "vlu1"),
    ]
    assert last is None
