"""A node in a network namespace of its own, with its vmlinkd, and pods beside it.

Demo, benchmarks and tests run on it. It does not touch the machine's own network, and `close`
removes everything that it made.
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
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, Self

from bench.testbed.slowness import SLOWNESS
from bench.testbed.switch import Datapath, Switch
from cni.kernel.netlink import Netlink
from cni.kernel.netns import CLONE_NEWNET, Namespace, libc

BIN = Path(sys.executable).parent
CLIENT = BIN / "vmlink"
PLUGINS = Path("/usr/lib/cni")  # Debian's containernetworking-plugins
START_SECONDS, STOP_SECONDS, RUN_SECONDS = 20 * SLOWNESS, 30 * SLOWNESS, 60 * SLOWNESS
_MS_BIND = 4096
_MNT_DETACH = 2


def exit_on_sigterm() -> None:
    """Let SIGTERM end the program by SystemExit, so that it cleans up as after Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class Process(Protocol):
    """The part of a Popen that a node needs of its vmlinkd."""

    @property
    def pid(self) -> int:
        """The process id."""
        ...

    def send_signal(self, number: int, /) -> None:
        """Send it a signal."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its status. Raises TimeoutExpired."""
        ...


@dataclass(frozen=True)
class Answer:
    """The outcome of an executed plugin.

    `code` is the exit code, `raw` stdout, `out` stdout decoded (None if it is no JSON), `ms` the
    milliseconds that the whole process took.
    """

    code: int
    out: Any
    raw: bytes
    ms: float

    def expect(self) -> Any:
        """The output of a call that must succeed. Raises AssertionError when it did not."""
        if self.code:
            raise AssertionError(f"exit code {self.code}: {self.raw.decode(errors='replace')}")
        return self.out


class Lab:
    """Network namespaces, mounted on files in a directory of their own, not in /run/netns."""

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="vmlink-"))
        self._paths: list[Path] = []

    def namespace(self, name: str) -> Path:
        """Make a network namespace and return its path. Raises OSError."""
        path = self.dir / f"ns-{name}"
        path.touch(exist_ok=False)
        # A thread moves itself into a new namespace and ends; the mount keeps the namespace.
        errors: list[OSError] = []
        thread = threading.Thread(target=_make_namespace, args=(path, errors))
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        self._paths.append(path)
        return path

    def drop(self, path: Path) -> None:
        """Unmount a namespace and remove its file."""
        libc.umount2(os.fsencode(path), _MNT_DETACH)
        path.unlink(missing_ok=True)
        if path in self._paths:
            self._paths.remove(path)

    def close(self) -> None:
        """Drop all namespaces and remove the directory."""
        for path in list(self._paths):
            self.drop(path)
        shutil.rmtree(self.dir)


class Node:
    """A node: its namespace at `path`, its vmlinkd with `run_dir`.

    `switch` is its Open vSwitch, which vmlinkd uses too: "" for none, "ovs", or "dpdk". `datapath`
    is the type of that switch's bridges, by default `switch.best_datapath`.
    """

    def __init__(self, switch: str = "", datapath: Datapath | None = None) -> None:
        self.lab = Lab()
        self.path = self.lab.namespace("node")
        self.namespace = Namespace.open(str(self.path))
        # A tmpfs as /run is one, also on machines where /run is none.
        self.run_dir = Path(tempfile.mkdtemp(prefix="vmlink-run-", dir="/dev/shm"))
        self.socket = self.run_dir / "vmlinkd.sock"
        self.ipam_dir = self.lab.dir / "ipam"
        self.log = self.lab.dir / "vmlinkd.log"
        self.daemon: Process | None = None
        self._pods = 0
        self.run(["ip", "link", "set", "lo", "up"])
        self.switch = Switch(self.namespace, switch == "dpdk", datapath) if switch else None

    def __enter__(self) -> Self:
        with ExitStack() as on_error:
            on_error.callback(self.close)
            if self.switch:
                self.switch.start()
            on_error.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, command: Sequence[str] = (str(BIN / "vmlinkd"),), **env: str) -> None:
        """Start vmlinkd and wait until it is ready (sd_notify(3)).

        Raises AssertionError, with vmlinkd's log, when it is not in START_SECONDS.
        """
        options = ["--run-dir", str(self.run_dir)]
        options += ["--ovs-db", self.switch.db] if self.switch else []
        notify = self.lab.dir / "notify"
        notify.unlink(missing_ok=True)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready,
            self.log.open("ab") as log,
            self.namespace.entered(),
        ):
            ready.bind(str(notify))
            ready.settimeout(START_SECONDS)
            env = {**os.environ, "NOTIFY_SOCKET": str(notify), **env}
            self.daemon = self.spawn([*command, *options], log, env)
            try:
                ready.recv(64)
            except TimeoutError as e:
                raise AssertionError(f"vmlinkd did not start:\n{self.log.read_text()}") from e

    def spawn(self, argv: Sequence[str], log: IO[bytes], env: Mapping[str, str]) -> Process:
        """Start the process of vmlinkd; called inside the node's namespace."""
        return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *argv], stderr=log, env=env)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End vmlinkd by a signal and return its exit status.

        Raises AssertionError, with the stacks of its threads, when it does not end in STOP_SECONDS.
        """
        assert self.daemon is not None
        self.daemon.send_signal(number)
        try:
            status = self.daemon.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as e:
            self.daemon.send_signal(signal.SIGABRT)  # faulthandler logs the stacks
            self.daemon.wait(STOP_SECONDS)
            self.daemon = None
            raise AssertionError(f"vmlinkd does not end:\n{self.log.read_text()}") from e
        self.daemon = None
        return status

    def pod(self, name: str = "") -> Path:
        """Make a pod's network namespace and return its path; `lab.drop` removes it."""
        self._pods += 1
        return self.lab.namespace(name or f"pod{self._pods}")

    def run(
        self, command: Sequence[str], where: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the node's namespace, or in the one at `where`.

        Raises CalledProcessError (with `check`), TimeoutExpired after RUN_SECONDS.
        """
        with Namespace.open(str(where or self.path)) as namespace, namespace.entered():
            return subprocess.run(
                command, check=check, capture_output=True, text=True, timeout=RUN_SECONDS
            )

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
        """Execute a CNI plugin as a runtime does; `env` adds variables."""
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
        """The argv of vmlinkctl for this node."""
        return [str(BIN / "vmlinkctl"), "--run-dir", str(self.run_dir), *arguments]

    def ipam(self, *subnets: str, routes: Sequence[str] = ()) -> dict[str, Any]:
        """A configuration of host-local, whose store is removed with the node."""
        return {
            "type": "host-local",
            "dataDir": str(self.ipam_dir),
            "ranges": [[{"subnet": s}] for s in subnets],
            "routes": [{"dst": r} for r in routes],
        }

    def contents(self) -> frozenset[str]:
        """The links, records, addresses and switch rows on the node, which attachments add to."""
        with self.namespace.entered(), Netlink() as netlink:
            seen = {f"link {link.name}" for link in netlink.links()}
        for pattern in ("state/*", "queue/*.del", "vhostuser/*"):
            seen |= {f"file {p}" for p in self.run_dir.glob(pattern)}
        stores = (p for p in self.ipam_dir.glob("*/*") if p.name != "lock")
        seen |= {f"address {p}" for p in stores if not p.name.startswith("last_reserved_ip")}
        seen |= {f"row {r}" for r in self.switch.rows()} if self.switch else set()
        return frozenset(seen)

    def close(self) -> None:
        """End vmlinkd and the switch, and remove namespaces and directories."""
        if self.daemon:
            self.stop()
        if self.switch:
            self.switch.close()
        self.namespace.close()
        shutil.rmtree(self.run_dir)
        self.lab.close()


def execute(command: list[str], env: Mapping[str, str], stdin: bytes) -> tuple[int, bytes, float]:
    """Run a program; returns exit code, stdout, and milliseconds from spawn to end.

    Memory files instead of pipes keep the measured time free of our own reading and writing.
    """
    fed, printed = os.memfd_create("stdin"), os.memfd_create("stdout")
    try:
        os.pwrite(fed, stdin, 0)
        actions = [(os.POSIX_SPAWN_DUP2, fed, 0), (os.POSIX_SPAWN_DUP2, printed, 1)]
        start = time.perf_counter()
        pid = os.posix_spawn(command[0], command, env, file_actions=actions)
        status = os.waitpid(pid, 0)[1]
        ms = (time.perf_counter() - start) * 1000
        output = os.pread(printed, os.fstat(printed).st_size, 0)
        return os.waitstatus_to_exitcode(status), output, ms
    finally:
        os.close(fed)
        os.close(printed)


def _make_namespace(path: Path, errors: list[OSError]) -> None:
    source = b"/proc/thread-self/ns/net"
    if libc.unshare(CLONE_NEWNET) or libc.mount(source, os.fsencode(path), None, _MS_BIND, None):
        errors.append(OSError(ctypes.get_errno(), f"cannot make a network namespace at {path}"))
