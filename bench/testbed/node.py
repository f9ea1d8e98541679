"""A node in a network namespace of its own, with its vmlinkd, and pods beside it.

Demo, benchmarks and tests run on it. Nothing of the machine's own network is touched, and
`close` gives everything back.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench.testbed.switch import Switch
from cni.kernel.netlink import Netlink
from cni.kernel.netns import CLONE_NEWNET, Namespace, libc

BIN = Path(sys.executable).parent
CLIENT = BIN / "vmlink"
PLUGINS = Path("/usr/lib/cni")  # Debian's containernetworking-plugins
_MS_BIND = 4096
_MNT_DETACH = 2


def give_back_on_sigterm() -> None:
    """SIGTERM ends the program as Ctrl-C does: what it made is given back."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@dataclass(frozen=True)
class Answer:
    """What an executed plugin said: exit code, stdout (decoded if it is JSON), and how long the
    whole process took in milliseconds.
    """

    code: int
    out: Any
    raw: bytes
    ms: float

    def expect(self) -> Any:
        """The output of a call that must have succeeded."""
        if self.code:
            raise AssertionError(f"exit code {self.code}: {self.raw.decode(errors='replace')}")
        return self.out


class Lab:
    """Network namespaces as files in a directory of our own, not in /run/netns."""

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="vmlink-"))
        self._paths: list[Path] = []

    def namespace(self, name: str) -> Path:
        path = self.dir / f"ns-{name}"
        path.touch(exist_ok=False)
        # A thread can leave its namespace for a new one and end; the mount keeps it.
        errors: list[OSError] = []
        thread = threading.Thread(target=_make_namespace, args=(path, errors))
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        self._paths.append(path)
        return path

    def drop(self, path: Path) -> None:
        libc.umount2(os.fsencode(path), _MNT_DETACH)
        path.unlink(missing_ok=True)
        if path in self._paths:
            self._paths.remove(path)

    def close(self) -> None:
        for path in list(self._paths):
            self.drop(path)
        shutil.rmtree(self.dir)


class Node:
    """The namespace `path` is the node's own; vmlinkd serves it from `run_dir`.

    With `switch` it has an Open vSwitch, "userspace" or "dpdk", of which vmlinkd knows.
    """

    def __init__(self, switch: str = "") -> None:
        self.lab = Lab()
        self.path = self.lab.namespace("node")
        self.namespace = Namespace.open(str(self.path))
        # /run is a tmpfs, and so is this, also where /run is not.
        self.run_dir = Path(tempfile.mkdtemp(prefix="vmlink-run-", dir="/dev/shm"))
        self.socket = self.run_dir / "vmlinkd.sock"
        self.ipam_dir = self.lab.dir / "ipam"
        self.log = self.lab.dir / "vmlinkd.log"
        self.daemon: subprocess.Popen[bytes] | None = None
        self._count = 0
        self.run(["ip", "link", "set", "lo", "up"])
        self.switch = Switch(self.namespace, switch == "dpdk") if switch else None

    def __enter__(self) -> Node:
        if self.switch:
            try:
                self.switch.start()
            except BaseException:
                self.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, command: Sequence[str] = (str(BIN / "vmlinkd"),), **env: str) -> None:
        """Start vmlinkd and wait until it says that it is ready (sd_notify)."""
        options = ["--run-dir", str(self.run_dir)]
        options += ["--ovs-db", self.switch.db] if self.switch else []
        notify = self.lab.dir / "notify"
        notify.unlink(missing_ok=True)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready,
            open(self.log, "ab") as log,
            self.namespace.entered(),
        ):
            ready.bind(str(notify))
            ready.settimeout(20)
            env = {**os.environ, "NOTIFY_SOCKET": str(notify), **env}
            self.daemon = self.spawn([*command, *options], log, env)
            try:
                ready.recv(64)
            except TimeoutError as e:
                raise AssertionError(f"vmlinkd did not start:\n{self.log.read_text()}") from e

    def spawn(
        self, argv: Sequence[str], log: IO[bytes], env: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Vmlinkd's process; called in the node's namespace."""
        return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *argv], stderr=log, env=env)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End vmlinkd by its own id; returns its exit status."""
        assert self.daemon is not None
        self.daemon.send_signal(number)
        try:
            status = self.daemon.wait(30)
        except subprocess.TimeoutExpired as e:
            self.daemon.send_signal(signal.SIGABRT)  # it tells where its threads are
            self.daemon.wait(30)
            self.daemon = None
            raise AssertionError(f"vmlinkd does not end:\n{self.log.read_text()}") from e
        self.daemon = None
        return status

    def pod(self, name: str = "") -> Path:
        self._count += 1
        return self.lab.namespace(name or f"pod{self._count}")

    def run(
        self, command: Sequence[str], where: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the node's namespace, or in the one at `where`."""
        with Namespace.open(str(where or self.path)) as namespace, namespace.entered():
            return subprocess.run(command, check=check, capture_output=True, text=True, timeout=60)

    def call(
        self,
        verb: str,
        conf: Mapping[str, Any] | bytes,
        container: str = "c1",
        netns: Path | str | None = None,
        ifname: str = "eth0",
        plugin: Path = CLIENT,
        **env: str,
    ) -> Answer:
        """Execute a CNI plugin as a runtime does."""
        variables = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_IFNAME": ifname,
            "CNI_NETNS": "" if netns is None else str(netns),
            "CNI_PATH": str(PLUGINS),
            **env,
        }
        stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
        return self.execute(plugin, variables, stdin)

    def execute(self, plugin: Path, env: Mapping[str, str], stdin: bytes) -> Answer:
        """Execute a plugin with exactly these CNI_* variables."""
        variables = {"PATH": os.environ["PATH"], "VMLINK_SOCKET": str(self.socket), **env}
        with self.namespace.entered():
            code, raw, ms = execute([str(plugin)], variables, stdin)
        try:
            out = json.loads(raw)
        except ValueError:
            out = None
        return Answer(code, out, raw, ms)

    def ctl(self, *arguments: str) -> list[str]:
        return [str(BIN / "vmlinkctl"), "--run-dir", str(self.run_dir), *arguments]

    def ipam(self, *subnets: str, routes: Sequence[str] = ()) -> dict[str, Any]:
        """A host-local configuration whose store goes with the node."""
        return {
            "type": "host-local",
            "dataDir": str(self.ipam_dir),
            "ranges": [[{"subnet": s}] for s in subnets],
            "routes": [{"dst": r} for r in routes],
        }

    def contents(self) -> frozenset[str]:
        """What attachments leave in the node: links, records, addresses, rows of the switch."""
        with self.namespace.entered(), Netlink() as netlink:
            found = {f"link {link.name}" for link in netlink.links()}
        for pattern in ("state/*", "queue/*.del", "vhostuser/*"):
            found |= {f"file {p}" for p in self.run_dir.glob(pattern)}
        stores = (p for p in self.ipam_dir.glob("*/*") if p.name != "lock")
        found |= {f"address {p}" for p in stores if not p.name.startswith("last_reserved_ip")}
        found |= {f"row {r}" for r in self.switch.rows()} if self.switch else set()
        return frozenset(found)

    def close(self) -> None:
        if self.daemon:
            self.stop()
        if self.switch:
            self.switch.close()
        self.namespace.close()
        shutil.rmtree(self.run_dir)
        self.lab.close()


def execute(command: list[str], env: Mapping[str, str], stdin: bytes) -> tuple[int, bytes, float]:
    """Exit code, stdout, and milliseconds from spawn to end, with no more around it than needed."""
    given, said = os.memfd_create("stdin"), os.memfd_create("stdout")
    try:
        os.pwrite(given, stdin, 0)
        actions = [(os.POSIX_SPAWN_DUP2, given, 0), (os.POSIX_SPAWN_DUP2, said, 1)]
        start = time.perf_counter()
        pid = os.posix_spawn(command[0], command, env, file_actions=actions)
        status = os.waitpid(pid, 0)[1]
        ms = (time.perf_counter() - start) * 1000
        return os.waitstatus_to_exitcode(status), os.pread(said, os.fstat(said).st_size, 0), ms
    finally:
        os.close(given)
        os.close(said)


def _make_namespace(path: Path, errors: list[OSError]) -> None:
    source = b"/proc/thread-self/ns/net"
    if libc.unshare(CLONE_NEWNET) or libc.mount(source, os.fsencode(path), None, _MS_BIND, None):
        errors.append(OSError(ctypes.get_errno(), f"cannot make a network namespace at {path}"))
