"""bench.testbed.switch, on which other tests rely: it starts, survives crashes and goes away."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bench.testbed import probes, snapshot
from bench.testbed.daemons import SwitchError
from bench.testbed.guest import GuestError
from bench.testbed.node import Node
from bench.testbed.switch import Switch, missing


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A node without vmlinkd."""
    with Node() as made:
        yield made


@pytest.fixture
def switch(node: Node) -> Iterator[Switch]:
    if why := missing():
        pytest.skip(why)
    with Switch(node.namespace) as made:
        made.add_bridge("br0")
        yield made


@contextmanager
def on_bridge(node: Node, switch: Switch, *addresses: str) -> Iterator[list[Path]]:
    """Pods with these addresses, each on br0 through a veth."""
    with ExitStack() as stack:
        pods = []
        for number, address in enumerate(addresses):
            pod, name = node.pod(), f"p{number}"
            stack.callback(node.lab.drop, pod)
            peer = ["peer", "name", "eth0", "netns", str(pod)]
            node.run(["ip", "link", "add", name, "up", "type", "veth", *peer])
            stack.callback(node.run, ["ip", "link", "del", name])
            node.run(["ip", "addr", "add", address, "dev", "eth0"], pod)
            node.run(["ip", "link", "set", "eth0", "up"], pod)
            switch.vsctl("add-port", "br0", name)
            pods.append(pod)
        yield pods


def test_each_daemon_can_crash_and_come_back(node: Node, switch: Switch) -> None:
    with on_bridge(node, switch, "10.9.0.1/24", "10.9.0.2/24") as (near, _):
        rows = switch.rows()
        assert probes.ping(str(near), "10.9.0.2", 3) > 0
        switch.kill_vswitchd()
        with pytest.raises(GuestError):
            probes.ping(str(near), "10.9.0.2", 3)
        switch.start_vswitchd()
        assert probes.ping(str(near), "10.9.0.2", 3) > 0
        switch.kill_ovsdb()
        with pytest.raises(SwitchError, match=r"db\.sock"):
            switch.vsctl("show")
        switch.start_ovsdb()
        assert switch.rows() == rows
        switch.vsctl("add-port", "br0", "late", "--", "set", "Interface", "late", "type=internal")
        number = switch.vsctl("get", "Interface", "late", "ofport").strip()
        assert f"{number}(late)" in switch.ofctl("show", "br0")


def test_rows_tell_what_is_left_behind(switch: Switch) -> None:
    before = switch.rows()
    port = ["add-port", "br0", "p0", "--", "set", "Interface", "p0", "type=internal"]
    qos = ["--id=@qos", "create", "QoS", "type=linux-htb", "queues:0=@queue"]
    queue = ["--id=@queue", "create", "Queue", "other_config:max-rate=1000000"]
    switch.vsctl(*port, "--", "set", "Port", "p0", "qos=@qos", "--", *qos, "--", *queue)
    assert before < switch.rows()
    switch.vsctl("del-port", "p0")
    left = sorted(row.split()[0] for row in switch.rows() - before)
    assert left == ["QoS", "Queue"]
    switch.vsctl("--all", "destroy", "QoS", "--", "--all", "destroy", "Queue")
    assert switch.rows() == before


def test_a_daemon_that_does_not_come_up_says_why(switch: Switch) -> None:
    switch.kill_ovsdb()
    (switch.dir / "conf.db").write_text("no database\n")
    with pytest.raises(SwitchError, match=r"(?s)ovsdb ended:.*unexpected file format"):
        switch.start_ovsdb()


@pytest.mark.machine
def test_nothing_is_left_of_it(node: Node) -> None:
    if why := missing(dpdk=True):
        pytest.skip(why)
    where = [Path("/run/dpdk"), Path("/run/openvswitch"), Path("/var/log/openvswitch")]
    there, links = [path.exists() for path in where], node.contents()
    for dpdk in (False, True):
        before = snapshot.take()
        with Switch(node.namespace, dpdk) as switch:
            switch.add_bridge("br0")
            assert switch.has_dpdk == dpdk
            assert node.contents() > links
        assert (snapshot.left_behind(before), switch.dir.exists()) == ([], False)
        assert ([path.exists() for path in where], node.contents()) == (there, links)


HOLDER = """
from bench.testbed.node import Node, exit_on_sigterm
from bench.testbed.switch import Switch
import signal
exit_on_sigterm()
with Node() as node, Switch(node.namespace, dpdk=True) as switch:
    print(switch.dir, switch.vswitchd.pid, flush=True)
    signal.pause()
"""


@pytest.mark.machine
def test_sigterm_gives_huge_pages_back() -> None:
    if why := missing(dpdk=True):
        pytest.skip(why)
    allowed = Path("/proc/sys/vm/nr_overcommit_hugepages")
    before = allowed.read_text()
    argv = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout
            where, pid = holder.stdout.readline().split()
            assert allowed.read_text() != before
        finally:
            holder.send_signal(signal.SIGTERM)
        assert holder.wait(30) == 128 + signal.SIGTERM
    assert allowed.read_text() == before
    assert not Path(where).exists()
    assert not Path(f"/proc/{pid}").exists()
