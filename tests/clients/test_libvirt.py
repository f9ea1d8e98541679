"""A real libvirtd starts guests with the interfaces that vmlinkctl describes, and plugs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from bench.testbed import switch
from bench.testbed.guest import Guest
from bench.testbed.node import Node
from tests.clients.clientkit import Machine
from tests.clients.libvirtd import LIBVIRTD, Libvirtd

pytestmark = [
    pytest.mark.machine,  # it boots guests
    pytest.mark.skipif(not LIBVIRTD.exists(), reason="Debian's package libvirt-daemon is missing"),
]
PATIENCE = 30
GATEWAY = "10.7.0.1"
UPLINKS: dict[str, dict[str, Any]] = {
    "tap": {"linux": {"bridge": "br0", "gateway": True}},
    "vhostuser": {"ovs": {"bridge": "br0"}},
}


@pytest.fixture(scope="module", params=["tap", "vhostuser"])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    dpdk = request.param == "vhostuser"
    if dpdk and (reason := switch.missing(dpdk=True)):
        pytest.skip(reason)
    with Node("dpdk" if dpdk else "") as made:
        if made.switch:
            made.switch.add_bridge("br0")
            made.run(["ip", "address", "add", f"{GATEWAY}/24", "dev", "br0"])
            made.run(["ip", "link", "set", "br0", "up"])
        else:
            made.run(["ip", "link", "add", "br0", "type", "bridge"])
        yield made


@pytest.fixture(scope="module")
def libvirt(machine: Machine) -> Iterator[Libvirtd]:
    made = Libvirtd(machine)
    yield made
    made.close()


@contextmanager
def attached(node: Node, mode: str, *ifnames: str) -> Iterator[list[str]]:
    """The XML of the NICs of a container, in the order of their attachment."""
    pod = node.pod()
    conf: dict[str, Any] = {"cniVersion": "1.0.0", "name": "vms", "type": "vmlink", "mode": mode}
    conf |= {**UPLINKS[mode], "ipam": node.ipam("10.7.0.0/24")}
    with ExitStack() as stack:
        stack.callback(node.lab.drop, pod)
        for ifname in ifnames:
            stack.callback(node.call, "DEL", conf, "vm", pod, ifname)
            node.call("ADD", conf, "vm", pod, ifname).expect()
        yield node.run(node.ctl("device", "vm", "--format", "libvirt")).stdout.splitlines()


def reaches_the_gateway(guest: Guest, nic: str, address: str) -> None:
    guest.configure(nic, [address])
    guest.run(f"ping -c 1 -w {PATIENCE} -i 0.1 -I {nic} {GATEWAY}", PATIENCE + 5)
    guest.run(f"ip addr flush dev {nic}")


def test_a_domain_starts_and_gets_a_second_nic(node: Node, libvirt: Libvirtd) -> None:
    mode = "vhostuser" if node.switch else "tap"
    with attached(node, mode, "eth0", "eth1") as nics:
        with libvirt.domain("vm", nics[0]) as guest:
            assert [nic.name for nic in guest.nics()] == ["eth0"]
            reaches_the_gateway(guest, "eth0", "10.7.0.100/24")
            for _ in range(2):
                libvirt.change("attach", "vm", nics[1])
                guest.run("until [ -e /sys/class/net/eth1 ]; do usleep 20000; done")
                reaches_the_gateway(guest, "eth1", "10.7.0.101/24")
                libvirt.change("detach", "vm", nics[1])
                guest.run("while [ -e /sys/class/net/eth1 ]; do usleep 20000; done")
        with libvirt.domain("vm", *nics) as guest:  # the tap has outlived the domain
            assert [nic.name for nic in guest.nics()] == ["eth0", "eth1"]
            reaches_the_gateway(guest, "eth1", "10.7.0.100/24")
