"""A namespace as a descriptor: entering, leaving, identity."""

import os
import subprocess
import sys
import threading

import pytest

from cni.errors import BadEnvironment
from cni.kernel.netns import Namespace
from tests.netns.nslib import new_namespace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_entered_comes_back_after_an_error():
    home = os.stat("/proc/thread-self/ns/net").st_ino
    with new_namespace() as ns:
        with pytest.raises(LookupError) as caught, ns.entered():
            raise LookupError(os.stat("/proc/thread-self/ns/net").st_ino)
        assert caught.value.args == (ns.identity[1],) != (home,)
        assert os.stat("/proc/thread-self/ns/net").st_ino == home


def test_entered_nests():
    with new_namespace() as outer, new_namespace() as inner, outer.entered():
        with inner.entered():
            assert os.stat("/proc/thread-self/ns/net").st_ino == inner.identity[1]
        assert os.stat("/proc/thread-self/ns/net").st_ino == outer.identity[1]


def test_identity():
    with Namespace.own() as own, Namespace.open("/proc/self/ns/net") as same:
        assert own.same_as(same)
        with new_namespace() as other:
            assert not own.same_as(other)


def test_own_is_the_process_even_where_the_thread_is_elsewhere():
    # A thread of its own, for the main thread's namespace is the process's.
    found = []

    def work():
        with new_namespace() as ns, ns.entered(), Namespace.own() as own:
            found.append(own.identity[1])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [os.stat("/proc/self/ns/net").st_ino]


@pytest.mark.parametrize("path", ["/proc/self/ns/mnt", "/etc/hostname", "/no/such", "a\0b"])
def test_what_is_no_network_namespace(path):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BadEnvironment, match="CNI_NETNS"):
        Namespace.open(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_way_back_ends_the_process():
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
