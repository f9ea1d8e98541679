"""A running guest gets a second NIC, passes traffic on it, and gives it back."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

from bench.testbed import probes
from bench.testbed.guest import Guest
from bench.testbed.node import Node
from cni.vmm.qmp import Qmp

CONTAINER = "hot"


def test_a_second_nic_is_plugged_and_unplugged(node: Node, pod: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        conf = {
            "cniVersion": "1.1.0",
            "name": "hot",
            "type": "vmlink",
            "linux": {"bridge": "br-hot", "gateway": True},
            "ipam": node.ipam("10.8.0.0/24"),
        }
        stack.callback(node.run, ["ip", "link", "del", "br-hot"])
        for ifname in ("eth0", "eth1"):
            queues = {"queues": 2} if ifname == "eth1" else {}
            node.call("ADD", conf | queues, CONTAINER, pod, ifname).expect()
            stack.callback(node.call, "DEL", conf, CONTAINER, pod, ifname)
        told = json.loads(node.run(node.ctl("device", CONTAINER)).stdout)
        monitor = str(tmp_path / "qmp")
        guest = stack.enter_context(
            Guest.boot(
                prefix=node.ctl("exec", "--ifname", "eth0", CONTAINER, "--"),
                netns=str(node.path),
                extra=["-qmp", f"unix:{monitor},server=on,wait=off"],
                cpus=2,
            )
        )
        plug, unplug = (
            node.ctl(verb, CONTAINER, "eth1", "--qmp", monitor) for verb in ("plug", "unplug")
        )
        refused(node, plug, monitor, told[1]["id"] + "n")
        for _ in range(2):
            assert node.run(plug).stdout == ""
            guest.run("until [ -e /sys/class/net/eth1 ]; do usleep 20000; done")
            nic = guest.nics()[1]
            assert (nic.mac, nic.mtu) == (told[1]["mac"], told[1]["mtu"])
            assert guest.run("ls -d /sys/class/net/eth1/queues/rx-* | wc -l").strip() == "2"
            guest.configure("eth1", told[1]["addresses"])
            assert probes.ping(str(node.path), told[1]["addresses"][0].partition("/")[0], 3) > 0
            node.run(unplug)
            assert [n.mac for n in guest.nics()] == [told[0]["mac"]]
        again = node.run(unplug, check=False)
        assert (again.returncode, "not found" in again.stderr) == (1, True), again.stderr
        taken = node.ctl("plug", CONTAINER, "eth0", "--qmp", monitor)
        assert "busy" in node.run(taken, check=False).stderr.lower()
        node.run(node.ctl("unplug", CONTAINER, "eth0", "--qmp", monitor))
        assert guest.nics() == []


def refused(node: Node, plug: list[str], monitor: str, nic: str) -> None:
    """QEMU refuses the last step; once the cause is gone, the same NIC can be plugged."""
    with Qmp(monitor, 10) as qmp:
        qmp.execute({"execute": "device_add", "arguments": {"driver": "edu", "id": nic}})
    failed = node.run(plug, check=False)
    assert failed.stderr.startswith("vmlinkctl: QEMU refused device_add: Duplicate device ID")
    with Qmp(monitor, 10) as qmp:
        qmp.execute({"execute": "device_del", "arguments": {"id": nic}})
        qmp.wait(("DEVICE_DELETED",), nic, "the event")
