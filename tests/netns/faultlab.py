"""A node whose vmlinkd goes wrong on demand, and every way to attach a pod to it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from bench.testbed.node import CLIENT, PLUGINS, Answer, Node
from bench.testbed.slowness import SLOWNESS
from cni.daemon.pool_store import read_json
from cni.kernel import macvtap, redirect
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from tests.netns.attach_ways import (
    EXECUTED,
    KATAS,
    KEY,
    NEVER_STAYS,
    POD,
    UPLINKS,
    Way,
    device_info,
)
from tests.waits import until, wait_for_orphans

ROOT = Path(__file__).parents[2]


class Zygote:
    """Where vmlinkds with faults are forked from: most of a start is the loading of code."""

    def __init__(self, *modes: str) -> None:
        """`modes` are modules of tests, each with a mode that vmlinkd is to know as well."""
        command = [sys.executable, "-m", "tests.faulty_daemon", *modes]
        argv = ["setpriv", "--pdeathsig", "KILL", *command]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, cwd=ROOT)
        assert self.number() == 0  # the leak check knows a setpriv by another name

    def fork(self, namespace: str, log: str, env: Mapping[str, str], argv: Sequence[str]) -> Daemon:
        wanted = {"namespace": namespace, "log": log, "env": env, "argv": argv}
        assert self.process.stdin
        self.process.stdin.write(json.dumps(wanted).encode() + b"\n")
        self.process.stdin.flush()
        return Daemon(self)

    def number(self, seconds: float = 20 * SLOWNESS) -> int:
        """The next line that it says. Raises TimeoutExpired."""
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise subprocess.TimeoutExpired("the zygote", seconds)
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate(timeout=20 * SLOWNESS)
        assert self.process.returncode == 0


class Daemon:
    """What Node uses of a Popen. A zygote has one at a time."""

    def __init__(self, zygote: Zygote) -> None:
        self.zygote = zygote
        self.pid = zygote.number()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        return self.zygote.number(20 * SLOWNESS if timeout is None else timeout)


class FaultyNode(Node):
    """Its vmlinkd goes wrong as the file `control` says."""

    def __init__(self, zygote: Zygote, switch: str) -> None:
        super().__init__(switch)
        self.zygote = zygote
        self.control = self.lab.dir / "fault"
        self.settings = self.lab.dir / "vmlinkd.yaml"
        self.settings.write_text(f"dan_dir: {self.lab.dir}/dans\n")

    def spawn(self, argv: Sequence[str], log: IO[bytes], env: Mapping[str, str]) -> Daemon:
        env = {**env, "VMLINK_FAULT": str(self.control)}
        argv = [*argv[1:], "--config", str(self.settings)]
        return self.zygote.fork(str(self.path), log.name, env, argv)


class Lab:
    """The node with its faulty vmlinkd, one pod, and what is there when nothing is attached."""

    def __init__(self, node: FaultyNode, way: Way) -> None:
        self.node, self.way = node, way
        self.noted = 0
        self.leaks: list[str] = []
        self.empty: frozenset[str] = frozenset()
        self.pod = node.pod()
        if "prevResult" in way.conf:
            # Else a link-local address changes its look a second after eth0 comes up.
            dad = "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad"
            node.run(["sh", "-c", dad], self.pod)
            link = ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far"]
            node.run(link, self.pod)
            node.run(["ip", "address", "add", "10.5.0.2/24", "dev", "eth0"], self.pod)
            for name in ("eth0", "far"):
                # A link-local address would come up when DAD has ended, in the midst of a test.
                node.run(["ip", "link", "set", name, "addrgenmode", "none"], self.pod)
                node.run(["ip", "link", "set", name, "up"], self.pod)

    def settle(self) -> None:
        self.wait()  # vmlinkd knows the network by then
        before = self.contents()
        self.call("ADD").expect()
        self.call("DEL").expect()
        # The bridge, its VLAN interface and the gateway's address stay; nothing else does.
        self.empty = self.contents()
        stays = [what for what in self.empty - before if what.startswith(NEVER_STAYS)]
        assert not stays, f"a plain DEL leaves {stays}"

    def call(self, verb: str, **change: Any) -> Answer:
        if verb in ("ADD", "DEL") and self.way.prepared:
            self.kits()
        path = f"{self.node.lab.dir}:{PLUGINS}"
        conf = self.way.stdin(self.node) | change
        return self.node.call(verb, conf, KEY.container_id, self.pod, CNI_PATH=path, CNI_ARGS=POD)

    def wait(self) -> None:
        """CHECK comes after whatever is under way with the attachment, and changes nothing."""
        answer = self.call("CHECK", prevResult=UPLINKS["chained"]["prevResult"])
        assert answer.code == 104
        assert "not attached" in answer.out["msg"]

    def kits(self) -> list[str]:
        """Those of the pool, once there are some and nothing is under way with them."""
        directory = self.node.run_dir / "pool" / "net@tap"

        def found() -> list[Path]:
            return [path for path in directory.glob("*.json") if path.name != "pool.json"]

        def quiet() -> bool:
            told = read_json(directory / "pool.json").get("ready", 0)
            return told == len(found()) > 0 and all(read_json(f).get("ready") for f in found())

        until(quiet)
        return [path.stem for path in found()]

    def aim(self, step: str, phase: str, when: str, action: str) -> None:
        fault = {"step": step, "phase": phase, "when": when, "action": action}
        self.node.control.write_text(json.dumps(fault))

    def mend(self) -> None:
        self.node.control.unlink(missing_ok=True)

    def contents(self) -> frozenset[str]:
        files = [*map(macvtap.node_path, KEY.ifindexes), str(device_info(self.node))]
        for place in (f"vhostuser_{KATAS}*", f"vhostuser_{KEY.vhost_port}*"):
            files += map(str, Path("/tmp").glob(place))
        files += map(str, Path(self.node.lab.dir, "dans").glob("*"))
        there = {path for path in files if Path(path).exists()}
        kits = self.kits() if self.way.prepared else []
        found = {what for what in self.node.contents() if not any(kit in what for kit in kits)}
        return frozenset(found | pod_contents(self.node, self.pod) | there)

    def remains(self) -> list[str]:
        """What is there too much, or no longer there though it is not ours."""
        return sorted(self.contents() ^ self.empty)

    def note(self, after: str) -> None:
        self.noted += 1
        self.leaks += [f"{self.way.name}: {after}: {what}" for what in self.remains()]

    def records(self) -> list[Path]:
        return list((self.node.run_dir / "state").glob("*.json"))

    def died(self) -> None:
        assert self.node.daemon
        assert self.node.daemon.wait(20 * SLOWNESS) == -signal.SIGKILL
        self.node.daemon = None
        self.mend()
        wait_for_orphans(EXECUTED)

    def close(self) -> None:
        self.mend()
        if self.node.daemon:
            self.node.stop()
        self.node.lab.drop(self.pod)


def pod_contents(node: Node, pod: Path) -> frozenset[str]:
    looks = "ip -o -d link; ip -o address; ip route show table all"
    looks += "; tc qdisc; tc filter show dev eth0 ingress"
    out = node.run(["sh", "-c", looks], pod, check=False).stdout
    found = {" ".join(line.split()) for line in out.splitlines()}
    with Namespace.open(str(pod)) as ns, ns.entered(), Netlink() as netlink:
        index = netlink.index("eth0")
        if index and redirect.target_of("tcx", netlink, index) is not None:
            found.add("tcx on eth0")
    return frozenset(found)


@contextmanager
def prepared(zygote: Zygote, way: Way) -> Iterator[FaultyNode]:
    """With all that a way needs; no vmlinkd runs yet."""
    with FaultyNode(zygote, way.switch) as node:
        if node.switch:
            node.switch.add_bridge("br0")
            node.run("ip link set br0 up".split())
        if way.prepared:
            node.settings.write_text("pools: {net: {tap: {size: 1}}}\n")
        if "master" in way.conf:
            node.run(["ip", "link", "add", "nic0", "up", "type", "veth", "peer", "name", "far0"])
        (node.lab.dir / EXECUTED).symlink_to(PLUGINS / "host-local")
        yield node


@contextmanager
def opened(node: FaultyNode, way: Way) -> Iterator[Lab]:
    node.start()
    lab = Lab(node, way)
    try:
        lab.settle()
        yield lab
    finally:
        lab.close()


@contextmanager
def held(lab: Lab, step: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[str], None]]]:
    """An ADD that stands still after a step, until the end of the block or the next such step."""
    path = Path(f"{lab.node.control}.gate")
    with socket.socket(socket.AF_UNIX) as gate, ExitStack() as stack:
        gate.bind(str(path))
        stack.callback(path.unlink)
        gate.listen()
        gate.settimeout(20 * SLOWNESS)
        lab.aim(step, lab.way.phase(step), "after", "hold")
        client = begin(lab)
        waiting = gate.accept()[0]
        lab.mend()

        def go_on_to(next_step: str) -> None:
            nonlocal waiting
            lab.aim(next_step, lab.way.phase(next_step), "after", "hold")
            with waiting:
                waiting.sendall(b"+")
            waiting = gate.accept()[0]
            lab.mend()

        try:
            yield client, go_on_to
        finally:
            with waiting:
                waiting.sendall(b"+")
            client.wait(20 * SLOWNESS)


def begin(lab: Lab) -> subprocess.Popen[bytes]:
    env = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": KEY.container_id,
        "CNI_IFNAME": KEY.ifname,
        "CNI_NETNS": str(lab.pod),
        "CNI_PATH": f"{lab.node.lab.dir}:{PLUGINS}",
        "CNI_ARGS": POD,
        "VMLINK_SOCKET": str(lab.node.socket),
    }
    pipe = subprocess.PIPE
    if lab.way.prepared:
        lab.kits()
    client = subprocess.Popen([CLIENT], env=env, stdin=pipe, stdout=subprocess.DEVNULL)
    assert client.stdin
    with client.stdin:
        client.stdin.write(json.dumps(lab.way.stdin(lab.node)).encode())
    return client
