"""QEMU's arguments for a NIC."""

from dataclasses import replace

import pytest

from cni.device import Device, qemu

ONE = Device("vlt1", "tap", "02:00:00:00:00:01", 1400, 1, "/run/netns/x", "vlt1")
SOCKET = replace(ONE, kind="vhostuser", path="/run/a,b/sock", netns="", tap="")
NIC = "virtio-net-pci,netdev=vlt1,mac=02:00:00:00:00:01,host_mtu=1400"


@pytest.mark.parametrize(
    ("queues", "fds", "vhost", "netdev", "nic"),
    [
        (1, [3], [], "fd=3", NIC),
        (1, [3], [4], "fd=3,vhost=on,vhostfd=4", NIC),
        (2, [3, 4], [], "fds=3:4", NIC + ",mq=on"),
        (4, range(3, 7), range(7, 11), "fds=3:4:5:6,vhost=on,vhostfds=7:8:9:10",
         NIC + ",mq=on"),
    ],
    ids=["one pair", "one pair, vhost", "two pairs", "four pairs, vhost"],
)  # fmt: skip
def test_qemu(queues, fds, vhost, netdev, nic):
    device = replace(ONE, queues=queues)
    assert qemu(device, fds, vhost) == [
        *("-netdev", f"tap,id=vlt1,{netdev}"),
        *("-device", nic),
    ]


def test_qemu_listens_for_vhost_user():
    chardev = "socket,id=vlt1c,path=/run/a,,b/sock,server=on,wait=off"
    assert qemu(replace(SOCKET, queues=2), []) == [
        *("-chardev", chardev),
        *("-netdev", "vhost-user,id=vlt1,chardev=vlt1c,queues=2"),
        *("-device", NIC + ",mq=on"),
    ]


def test_a_guest_that_must_finish_its_checksums_is_offered_no_offload():
    nic = qemu(replace(ONE, offload=False), [3])[-1]
    assert nic.startswith(NIC + ",csum=off,gso=off,host_tso4=off")
