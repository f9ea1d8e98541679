"""A node where the vmlinkd of an old commit attaches pods, and today's takes its place."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.testbed import switch
from bench.testbed.node import BIN, PLUGINS, Answer, Node
from cni.spec.types import AttachmentKey
from tests.netns.attach_ways import EXECUTED, INFO, POD, Way
from tests.netns.faultlab import pod_contents
from tests.waits import until

COMMIT = "3c781983706f22a34b45c791827068624232bf71"
OLD = (sys.executable, "-P", "-m", "cni.daemon")  # as it was called in COMMIT
NEW = (str(BIN / "vmlinkd"),)
ROOT = Path(__file__).parents[2]
_QUIET = ("debug", "info")
STAYS = frozenset(("link br0", "link br0.100"))  # other pods and people use them


def unpack(directory: Path) -> None:
    """The code of COMMIT. Skips the test where the history does not have it."""
    git = ["git", "-C", str(ROOT), "archive", "--format=tar", COMMIT, "cni"]
    try:
        done = subprocess.run(git, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip(f"git is not installed, so the code of {COMMIT} cannot be had")
    except subprocess.CalledProcessError as e:
        pytest.skip(f"the history here does not have {COMMIT}: {e.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", str(directory)], input=done.stdout, check=True)


class Attachment:
    """A pod that is attached in one of the ways, and what that has made."""

    def __init__(self, node: Node, way: Way, container: str) -> None:
        self.node, self.way = node, way
        self.key = AttachmentKey(container, "eth0")
        self.pod = node.pod()
        if "prevResult" in way.conf:
            self._chain()
        self.bare = pod_contents(node, self.pod)
        before = node.contents()
        self.result: dict[str, Any] = self.call("ADD").expect()
        self.made = node.contents() - before - STAYS
        self.links = self._links()

    def _chain(self) -> None:
        """The interface of the plugin before us, with no address that comes to it later."""
        self.node.run("ip link add eth0 type veth peer name far".split(), self.pod)
        self.node.run("ip address add 10.5.0.2/24 dev eth0".split(), self.pod)
        for name in ("eth0", "far"):
            self.node.run(["ip", "link", "set", name, "addrgenmode", "none", "up"], self.pod)
        shown = "ip -o link show type veth".split()
        until(lambda: self.node.run(shown, self.pod).stdout.count(" state UP ") == 2)

    def call(self, verb: str, **change: Any) -> Answer:
        conf = self.way.stdin(self.node) | change
        if "CNIDeviceInfoFile" in conf.get("runtimeConfig", {}):
            conf["runtimeConfig"] = dict.fromkeys(INFO["runtimeConfig"], str(self._device_info))
        path = f"{self.node.lab.dir}:{PLUGINS}"
        container = self.key.container_id
        return self.node.call(verb, conf, container, self.pod, CNI_PATH=path, CNI_ARGS=POD)

    def check(self) -> list[str]:
        return self._said(self.call("CHECK", prevResult=self.result))

    def delete(self) -> list[str]:
        return self._said(self.call("DEL"))

    def _said(self, answer: Answer) -> list[str]:
        return [f"{self.way.name}: {answer.raw.decode()}"] if answer.code else []

    def changes(self) -> list[str]:
        """What is gone, or was made anew; CHECK has the details."""
        return self._named(self.made - self.node.contents() | self.links ^ self._links())

    def _links(self) -> set[str]:
        """The pod's, each with its ifindex, which a link that is made anew does not have."""
        shown = self.node.run(["ip", "-o", "link"], self.pod).stdout
        return {" ".join(line.split()[:2]) for line in shown.splitlines()}

    def remains(self) -> list[str]:
        """What is there as if it was attached."""
        there = self.made & self.node.contents()
        return self._named(there | self._files() | (pod_contents(self.node, self.pod) ^ self.bare))

    def _files(self) -> set[str]:
        container, made = self.key.container_id, self.node.lab.dir
        places = [f"/dev/tap{index}" for index in self.key.ifindexes]
        places += [f"{made}/dans/{container}.*", f"/tmp/vhostuser_{self.key.vhost_port}*"]
        patterns = (*places, str(self._device_info))
        return {str(path) for place in patterns for path in Path("/").glob(place[1:])}

    def _named(self, found: set[str] | frozenset[str]) -> list[str]:
        return [f"{self.way.name}: {what}" for what in sorted(found)]

    @property
    def _device_info(self) -> Path:
        return self.node.lab.dir / "info" / f"{self.key.container_id}.json"

    def cut(self) -> None:
        """As if the old vmlinkd had ended during the ADD: the record is its first line alone."""
        record = self.node.run_dir / "state" / f"{self.key.digest}.json"
        first, found, _ = record.read_bytes().partition(b"\n")
        assert found
        record.write_bytes(first)


class Upgrade:
    """Today's vmlinkd is started where the one of COMMIT was, whose code is in `old`."""

    def __init__(self, node: Node, old: Path, settings: str) -> None:
        self.node, self.old = node, old
        self.settings = node.lab.dir / "vmlinkd.yaml"
        self.settings.write_text(f"dan_dir: {node.lab.dir}/dans\n{settings}\n")
        self._log_begin = 0

    def start_old(self) -> None:
        self._require_old()
        self.node.start((*OLD, "--config", str(self.settings)), PYTHONPATH=str(self.old))

    def _require_old(self) -> None:
        argv = [*OLD[:2], "-c", "import cni; print(cni.__path__[0])"]
        env = {"PYTHONPATH": str(self.old)}
        found = subprocess.run(argv, check=True, capture_output=True, text=True, env=env).stdout
        assert found.strip() == f"{self.old}/cni"

    def stop_old(self) -> None:
        assert self.node.stop() == 0
        self._log_begin = self.node.log.stat().st_size

    def start_new(self) -> None:
        self.node.start((*NEW, "--config", str(self.settings)))

    def complaints(self) -> list[str]:
        """What today's vmlinkd warned of: a record that it cannot read, or a plan."""
        lines = self.node.log.read_bytes()[self._log_begin :].splitlines()
        return [line.decode() for line in lines if json.loads(line)["level"] not in _QUIET]

    def collect(self) -> list[str]:
        """Call GC with nothing that is valid.

        The configuration has no `ipam`: the addresses are released by the records alone.
        """
        conf: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": "vmlink"}
        conf |= {"linux": {"bridge": "br0"}, "cni.dev/valid-attachments": []}
        answer = self.node.call("GC", conf)
        return [answer.raw.decode()] if answer.code else []


@contextmanager
def furnished(kind: str, old: Path, settings: str = "") -> Iterator[Upgrade]:
    """With the old vmlinkd running, and all that the ways with such a switch need."""
    if kind and (reason := switch.missing(dpdk=kind == "dpdk")):
        pytest.skip(reason)
    with Node(kind) as node:
        if node.switch:
            node.switch.add_bridge("br0")
            node.run("ip link set br0 up".split())
        node.run("ip link add nic0 up type veth peer name far0".split())
        (node.lab.dir / EXECUTED).symlink_to(PLUGINS / "host-local")
        made = Upgrade(node, old, settings)
        made.start_old()
        yield made


class Kits:
    """The pool of one mode, by its files, which the command reads, too."""

    def __init__(self, node: Node, mode: str) -> None:
        self.node = node
        self.directory = node.run_dir / "pool" / f"net@{mode}"

    def told(self) -> dict[str, Any]:
        out = self.node.run(self.node.ctl("pool", "--json")).stdout
        pools: list[dict[str, Any]] = json.loads(out)
        return pools[0] if pools else {}

    def ids(self) -> set[str]:
        return {path.stem for path in self.directory.glob("*.json")} - {"pool"}

    def settled(self, count: int) -> set[str]:
        """Once there are so many and nothing is under way with them."""
        until(lambda: self.told().get("ready") == count == len(self.ids()))
        return self.ids()

    def stamp(self) -> int:
        """Changes when vmlinkd has looked at the pool."""
        return (self.directory / "pool.json").stat().st_mtime_ns

    def ports(self) -> dict[str, str]:
        """The switch's identity of each port: that of one that was made anew is another."""
        assert self.node.switch
        columns = ("--bare", "--columns=name,_uuid,ofport")
        rows = self.node.switch.vsctl(*columns, "list", "Interface").split("\n\n")
        found = (row.split("\n", 1) for row in map(str.strip, rows))
        return {name: rest for name, rest in found if name != "br0"}
