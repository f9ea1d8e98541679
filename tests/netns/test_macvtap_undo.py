"""DEL of a macvtap, whatever is gone by then; and a /dev that is no devtmpfs, as in containers."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.testbed.node import BIN, Node
from cni.kernel import macvtap
from cni.kernel.tuntap import IFREQ, TUNGETIFF
from tests.netns.macvtaplib import FORMS, numbers
from tests.netns.wirelib import Topology, chained, mastered
from tests.waits import until

BARE_DEV = r"""
mkdir "$0" && mount --bind /dev/shm "$0"
mount -t tmpfs -o mode=755 tmpfs /dev && mkdir /dev/net /dev/shm && mount --move "$0" /dev/shm
mknod /dev/null c 1 3 && mknod /dev/net/tun c 10 200
rmdir "$0"
exec "$@"
"""


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Topology:
    return FORMS[request.param]


def links(node: Node, where: Path) -> str:
    return node.run(["ip", "-oneline", "link"], where).stdout


def forget(node: Node) -> None:
    """Delete all records of attachments."""
    for path in (node.run_dir / "state").glob("*.json"):
        path.unlink()


def dev(node: Node) -> list[Path]:
    """The macvtaps' nodes in the /dev that vmlinkd sees."""
    assert node.daemon
    return sorted(Path(f"/proc/{node.daemon.pid}/root/dev").glob("tap[0-9]*"))


@pytest.mark.parametrize("lost", [False, True], ids=["record", "no record"])
def test_del_takes_all_but_what_is_others(node: Node, form: Topology, lost: bool) -> None:
    with form(node) as attached:
        clean = links(node, attached.pod)
        attached.add()
        path = attached.node_path
        if lost:
            forget(node)
        attached.delete()
        assert links(node, attached.pod) == clean
        assert not Path(path).exists()


@pytest.mark.parametrize("gone", ["eth0", "macvtap", "node"])
def test_del_of_what_is_gone(node: Node, form: Topology, gone: str) -> None:
    with form(node) as attached:
        attached.add()
        path = attached.node_path
        if gone == "node":
            Path(path).unlink()
        else:
            link = "eth0" if gone == "eth0" else attached.macvtap
            node.run(["ip", "link", "del", link], attached.pod)
        attached.delete()
        assert not Path(path).exists()


def test_del_while_the_vmm_runs(node: Node, form: Topology) -> None:
    with form(node) as attached:
        attached.add()
        path, guest = attached.node_path, attached.guest()
        attached.delete()
        assert not Path(path).exists()
        with pytest.raises(OSError, match="Link has been severed"):
            fcntl.ioctl(guest.fds[0], TUNGETIFF, bytes(IFREQ.size))


def test_del_without_the_namespace(node: Node, form: Topology) -> None:
    with form(node) as attached:
        attached.add()
        path = attached.node_path
        node.call("DEL", attached.conf, attached.pod.name, None).expect()
        assert "macvtap" not in links(node, attached.pod)
        assert not Path(path).exists()


@pytest.mark.parametrize("foreign", ["before", "meanwhile"])
def test_a_filter_that_somebody_has_on_the_interface_stays(node: Node, foreign: str) -> None:
    with chained(node, mode="macvtap") as attached:
        if foreign == "meanwhile":
            attached.add()
        else:
            node.run("tc qdisc add dev eth0 clsact".split(), attached.pod)
        theirs = "dev eth0 egress pref 9 protocol ip u32 match u32 0 0"
        node.run(["tc", "filter", "add", *theirs.split()], attached.pod)
        if foreign == "before":
            attached.add()
        attached.delete()
        for way, count in (("egress", 1), ("ingress", 0)):
            shown = node.run(["tc", "filter", "show", "dev", "eth0", way], attached.pod).stdout
            assert ("u32" in shown) == bool(count)
            assert "vmlink" not in shown


# From here on vmlinkd has a /dev that is no devtmpfs: the kernel makes no nodes in it.


@pytest.fixture
def bare() -> Iterator[Node]:
    """A node whose vmlinkd has its own /dev, a plain tmpfs as in a container."""
    with Node() as node:
        mounted = node.lab.dir / "shm"
        command = ["unshare", "--mount", "sh", "-ec", BARE_DEV, str(mounted)]
        node.start((*command, str(BIN / "vmlinkd")))
        yield node


def test_a_node_is_made_and_removed(bare: Node, form: Topology) -> None:
    with form(bare, tap={"group": 4712}) as attached:
        attached.add()
        (path,) = dev(bare)
        index = int(path.name.removeprefix("tap"))
        assert index == numbers(attached)[0]
        status = path.lstat()
        assert stat.filemode(status.st_mode) == "crw-rw----"
        assert (status.st_uid, status.st_gid) == (0, 4712)
        assert status.st_rdev == os.lstat(macvtap.node_path(index)).st_rdev
        checked = {**attached.conf, "prevResult": attached.result}
        assert bare.call("CHECK", checked, attached.pod.name, attached.pod).code == 0
        attached.delete()
        assert not dev(bare)


def test_a_node_goes_though_the_namespace_is_gone(bare: Node, form: Topology) -> None:
    with form(bare) as attached:
        attached.add()
        attached.namespace.close()
        bare.lab.drop(attached.pod)
        bare.call("DEL", attached.conf, attached.pod.name, None).expect()
        assert not dev(bare)


def test_a_node_goes_though_namespace_and_record_are_gone(bare: Node, form: Topology) -> None:
    with form(bare) as attached:
        attached.add()
        (path,) = dev(bare)
        number = path.lstat().st_rdev
        forget(bare)
        attached.namespace.close()
        bare.lab.drop(attached.pod)
        link = Path(f"/sys/dev/char/{os.major(number)}:{os.minor(number)}")
        until(lambda: not link.is_symlink())
        bare.call("DEL", attached.conf, attached.pod.name, None).expect()
        assert not dev(bare)


def test_a_node_of_another_macvtap_is_not_touched(bare: Node, form: Topology) -> None:
    with form(bare) as attached, stranger(bare, numbers(attached)[0]) as path:
        before = path.lstat()
        attached.add()
        assert [each.name for each in dev(bare)] == [
            f"tap{index}" for index in sorted(numbers(attached)[:2])
        ]
        attached.delete()
        assert path.lstat() == before
        path.unlink()


@contextmanager
def stranger(node: Node, index: int) -> Iterator[Path]:
    """Somebody else's macvtap in another namespace, and its node in vmlinkd's /dev."""
    where = node.pod()
    node.run("ip link add low type veth peer name far".split(), where)
    node.run(f"ip link add link low name tap index {index} type macvtap".split(), where)
    number = os.lstat(macvtap.node_path(index)).st_rdev
    assert node.daemon
    path = Path(f"/proc/{node.daemon.pid}/root{macvtap.node_path(index)}")
    os.mknod(path, stat.S_IFCHR | 0o600, number)
    try:
        yield path
    finally:
        node.run("ip link del low".split(), where)
        node.lab.drop(where)


def test_a_number_used_again_does_not_open_a_strangers_frames(bare: Node) -> None:
    """A device number that becomes free goes to the next macvtap that anybody makes."""
    with mastered(bare) as attached:
        attached.add()
        (left,) = dev(bare)
        number = left.lstat().st_rdev
        attached.delete()
        with stranger(bare, 9000) as other:
            os.mknod(left, stat.S_IFCHR | 0o666, number)
            assert other.lstat().st_rdev == number
            attached.delete()
            assert dev(bare) == [other]


def test_what_vmlinkctl_tells(node: Node, form: Topology) -> None:
    with form(node, queues=2) as attached:
        attached.add()
        (device,) = json.loads(node.run(node.ctl("device", attached.pod.name)).stdout)
        assert (device["kind"], device["path"]) == ("macvtap", attached.node_path)
        said = node.run(node.ctl("device", attached.pod.name, "--format", "qemu")).stdout
        assert f"tap,id={device['id']},fds=3:4" in said
