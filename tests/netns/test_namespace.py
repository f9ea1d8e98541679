"""A network namespace as a descriptor: enter it, leave it, tell it from others."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cni.errors import BadEnvironment
from cni.kernel.netns import Namespace
from tests.netns.nslib import new_namespace, open_descriptors

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def inode(path: str = "/proc/thread-self/ns/net") -> int:
    """Of the namespace there; that of the calling thread unless a path is given."""
    return Path(path).stat().st_ino


def test_entered_comes_back_after_an_error() -> None:
    home = inode()
    with new_namespace() as ns:
        with pytest.raises(LookupError) as caught, ns.entered():
            raise LookupError(inode())
        assert caught.value.args == (ns.identity[1],) != (home,)
        assert inode() == home


def test_entered_nests() -> None:
    with new_namespace() as outer, new_namespace() as inner, outer.entered():
        with inner.entered():
            assert inode() == inner.identity[1]
        assert inode() == outer.identity[1]


def test_identity() -> None:
    with Namespace.own() as own, Namespace.open("/proc/self/ns/net") as same:
        assert own.same_as(same)
        with new_namespace() as other:
            assert not own.same_as(other)


def test_own_is_the_process_even_where_the_thread_is_elsewhere() -> None:
    # In a second thread, because the main thread's namespace is the one of the process.
    found: list[int] = []

    def work() -> None:
        with new_namespace() as ns, ns.entered(), Namespace.own() as own:
            found.append(own.identity[1])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [inode("/proc/self/ns/net")]


@pytest.mark.parametrize("path", ["/proc/self/ns/mnt", "/etc/hostname", "/no/such", "a\0b"])
def test_what_is_no_network_namespace(path: str) -> None:
    before = open_descriptors()
    with pytest.raises(BadEnvironment, match="CNI_NETNS"):
        Namespace.open(path)
    assert open_descriptors() == before


def test_no_way_back_ends_the_process() -> None:
    code = (
        "from cni.kernel import netns\n"
        "ns = netns.Namespace.own()\n"
        "with ns.entered():\n"
        "    class Refuses:\n"
        "        def setns(self, *_): return -1\n"
        "    netns.libc = Refuses()\n"
        "print('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode < 0
    assert b"cannot leave a namespace" in done.stderr
    assert b"went on" not in done.stdout
