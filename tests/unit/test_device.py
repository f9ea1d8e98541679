"""QEMU's arguments for a NIC."""

from dataclasses import replace

import pytest

from cni.device import Device, qemu

ONE = Device("vlt1", "tap", "/run/netns/x", "vlt1", "02:00:00:00:00:01", 1400, 1)
NIC = "virtio-net-pci,netdev=vlt1,mac=02:00:00:00:00:01,host_mtu=1400"


@pytest.mark.parametrize(
    ("queues", "fds", "vhost", "netdev", "nic"),
    [
        (1, [3], [], "fd=3", NIC),
        (1, [3], [4], "fd=3,vhost=on,vhostfd=4", NIC),
        (2, [3, 4], [], "fds=3:4", NIC + ",mq=on,vectors=6"),
        (4, range(3, 7), range(7, 11), "fds=3:4:5:6,vhost=on,vhostfds=7:8:9:10",
         NIC + ",mq=on,vectors=10"),
    ],
    ids=["one pair", "one pair, vhost", "two pairs", "four pairs, vhost"],
)  # fmt: skip
def test_qemu(queues, fds, vhost, netdev, nic):
    device = replace(ONE, queues=queues)
    assert qemu(device, fds, vhost) == [
        *("-netdev", f"tap,id=vlt1,{netdev}"),
        *("-device", nic),
    ]
