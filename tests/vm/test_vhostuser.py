"""Two guests on one OVS-DPDK bridge; its daemon dies and returns without their help."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench.testbed import switch
from bench.testbed.guest import Guest
from bench.testbed.node import Node
from cni.spec.types import AttachmentKey

BRIDGE = "br0"
PATIENCE = 30


@pytest.fixture
def dpdk() -> Iterator[Node]:
    """A node for a single test, which may kill and restart the switch."""
    if reason := switch.missing(dpdk=True):
        pytest.skip(reason)
    with Node("dpdk") as made:
        assert made.switch
        made.switch.add_bridge(BRIDGE)
        made.start()
        yield made


def attach(
    node: Node, stack: ExitStack, container: str, **keys: Any
) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Attach a container; return the result, the device and the pod's namespace."""
    pod = node.pod()
    stack.callback(node.lab.drop, pod)
    ipam = node.ipam("10.7.0.0/24")
    conf: dict[str, Any] = {
        "cniVersion": "1.1.0",
        "name": "vhost",
        "type": "vmlink",
        "mode": "vhostuser",
    }
    conf |= {"ovs": {"bridge": BRIDGE}, "ipam": ipam, **keys}
    result = node.call("ADD", conf, container, pod).expect()
    stack.callback(lambda: node.call("DEL", conf, container, pod).expect())
    node.call("CHECK", {**conf, "prevResult": result}, container, pod).expect()
    device = json.loads(node.run(node.ctl("device", container)).stdout)[0]
    return result, device, pod


def boot(node: Node, stack: ExitStack, container: str, **keys: Any) -> tuple[Guest, str]:
    """A guest with its address configured, and that address."""
    _, device, _ = attach(node, stack, container, **keys)
    prefix = node.ctl("exec", container, "--")
    guest = stack.enter_context(
        Guest.boot(prefix=prefix, netns=str(node.path), shared_memory=True, cpus=2)
    )
    (nic,) = guest.nics()
    assert (nic.mac, nic.mtu) == (device["mac"], device["mtu"])
    guest.configure(nic.name, device["addresses"])
    return guest, device["addresses"][0].partition("/")[0]


def test_two_guests_talk_and_go_on_when_the_switch_is_back(dpdk: Node) -> None:
    with ExitStack() as stack:
        near, _ = boot(dpdk, stack, "near")
        far, address = boot(dpdk, stack, "far", mtu=1400, queues=2)
        assert far.run("ls -d /sys/class/net/eth0/queues/rx-* | wc -l").strip() == "2"
        until_answered = f"ping -c 1 -w {PATIENCE} -i 0.1 {address}"
        near.run(until_answered, PATIENCE + 5)
        assert gigabits(near, far, address) > 0.01
        assert dpdk.switch
        pids = (near.pid, far.pid)
        dpdk.switch.kill_vswitchd()
        dpdk.switch.start_vswitchd()
        near.run(until_answered, PATIENCE + 5)
        assert gigabits(near, far, address) > 0.01
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)


def gigabits(client: Guest, server: Guest, address: str) -> float:
    listening = server.spawn("iperf3 -s -1")
    try:
        server.run("until grep -q ':1451 [0-9A-F:]* 0A ' /proc/net/tcp6; do usleep 9000; done")
        said = client.run(f"iperf3 -J -t 2 -c {address}", timeout=30)
        return float(json.loads(said)["end"]["sum_received"]["bits_per_second"]) / 1e9
    finally:
        server.kill(listening)


def test_what_the_vmm_and_the_pod_are_told(dpdk: Node) -> None:
    path = dpdk.lab.dir / "info" / "device.json"
    with ExitStack() as stack:
        result, device, pod = attach(
            dpdk,
            stack,
            "told",
            placeholder=True,
            vhostuser={"owner": 70007, "group": 80008},
            runtimeConfig={"CNIDeviceInfoFile": str(path)},
        )
        place = Path(device["path"])
        directory = place.parent.stat()
        assert (directory.st_uid, directory.st_gid) == (70007, 80008)
        assert directory.st_mode & 0o777 == 0o770
        assert result["interfaces"][0]["socketPath"] == str(place)
        told = json.loads(path.read_text())
        assert told["vhost-user"] == {"mode": "server", "path": str(place)}
        assert "eth0" in dpdk.run(["ip", "-o", "link"], pod).stdout
        port = AttachmentKey("told", "eth0").vhost_port
        assert dpdk.switch
        assert dpdk.switch.vsctl("get", "Interface", port, "mtu_request").strip() == "1500"
        without = dpdk.run(dpdk.ctl("exec", "told", "--", "true"), check=False)
        assert (without.returncode, "memory must be shared" in without.stderr) == (1, True)
    assert not path.exists()
    assert not place.parent.exists()


def test_bandwidth_is_dpdks(dpdk: Node) -> None:
    """CNI states its limits in bits, OVS in bytes and kilobits."""
    limit = {"ingressRate": 80_000_000, "ingressBurst": 8_000_000}
    limit |= {"egressRate": 40_000_000, "egressBurst": 4_000_000}
    with ExitStack() as stack:
        attach(dpdk, stack, "slow", bandwidth=limit)
        port = AttachmentKey("slow", "eth0").vhost_port
        assert dpdk.switch
        get = dpdk.switch.vsctl
        assert get("get", "Interface", port, "ingress_policing_rate").strip() == "40000"
        assert get("get", "Interface", port, "ingress_policing_burst").strip() == "4000"
        (qos,) = get("--bare", "--columns=_uuid", "list", "QoS").split()
        assert get("get", "QoS", qos, "type", "other_config").split("\n")[:2] == [
            "egress-policer",
            '{cbs="1000000", cir="10000000"}',
        ]


def test_kata_in_go_finds_a_socket_on_which_the_switch_listens(dpdk: Node) -> None:
    """Kata finds it by the address of a link in the namespace; QEMU connects to it."""
    pod, info = dpdk.pod(), dpdk.lab.dir / "info.json"
    conf: dict[str, Any] = {
        "cniVersion": "1.1.0",
        "name": "vhost",
        "type": "vmlink",
        "mode": "vhostuser",
    }
    pid = os.getpid()  # other test runs have sockets in /tmp as well
    ipam = dpdk.ipam(f"10.{pid >> 8 & 0xFF}.{pid & 0xFF}.0/24")
    conf |= {"ovs": {"bridge": BRIDGE}, "ipam": ipam, "runtime": "kata-go"}
    conf |= {"runtimeConfig": {"CNIDeviceInfoFile": str(info)}}
    result = dpdk.call("ADD", conf, "kata", pod).expect()
    try:
        dpdk.call("CHECK", {**conf, "prevResult": result}, "kata", pod).expect()
        (link,) = json.loads(dpdk.run(["ip", "-j", "addr", "show", "eth0"], pod).stdout)
        (address,) = link["addr_info"]
        assert link["address"] == result["interfaces"][0]["mac"]
        assert "NOARP" not in link["flags"]  # Kata would have the guest neither ask nor answer
        found = Path(f"/tmp/vhostuser_{address['local']}/vhu.sock")
        assert str(found.readlink()) == result["interfaces"][0]["socketPath"]
        with socket.socket(socket.AF_UNIX) as qemu:
            qemu.connect(str(found))
        told = json.loads(info.read_text())["vhost-user"]
        assert told == {"mode": "client", "path": result["interfaces"][0]["socketPath"]}
        without = dpdk.run(dpdk.ctl("device", "kata"), check=False)
        assert "Kata makes the tap itself" in without.stderr
        dpdk.call("STATUS", conf).expect()
    finally:
        dpdk.call("DEL", conf, "kata", pod).expect()
        dpdk.lab.drop(pod)
    assert not found.parent.exists()


def test_a_running_guest_gets_a_port_of_the_switch(dpdk: Node, tmp_path: Path) -> None:
    monitor = str(tmp_path / "qmp")
    dpdk.run(["ip", "address", "add", "10.7.0.254/24", "dev", BRIDGE])
    dpdk.run(["ip", "link", "set", BRIDGE, "up"])
    with ExitStack() as stack:
        _, device, _ = attach(dpdk, stack, "hot", queues=2)
        qmp = ["-qmp", f"unix:{monitor},server=on,wait=off"]
        guest = stack.enter_context(Guest.boot(shared_memory=True, cpus=2, extra=qmp))
        dpdk.run(dpdk.ctl("plug", "hot", "eth0", "--qmp", monitor))
        guest.run("until [ -e /sys/class/net/eth0 ]; do usleep 20000; done")
        guest.configure("eth0", device["addresses"])
        guest.run(f"ping -c 1 -w {PATIENCE} -i 0.1 10.7.0.254", PATIENCE + 5)
        dpdk.run(dpdk.ctl("unplug", "hot", "eth0", "--qmp", monitor))
        assert guest.nics() == []
