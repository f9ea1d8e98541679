"""A node for container runtimes: its own /run, /opt, /var/lib and /etc/cni, and vmlink installed.

Runtimes use fixed paths (`ctr run --cni` above all), so they get a mount namespace in which these
are empty and private. Processes that are still in it at the end are killed by their ids.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from bench.testbed.node import BIN, PLUGINS, Node
from bench.testbed.slowness import SLOWNESS

BUSYBOX = Path("/bin/busybox")
APPLETS = "sh sleep ping ip nc cat".split()
IMAGE = "vmlink.test/busybox:1"
CGROUP = f"vmlink-{os.getpid()}"  # the parent of every cgroup that a runtime makes
_PRIVATE = ("/run", "/opt", "/var/lib", "/etc/cni")
_PATIENCE = 20.0  # seconds
T = TypeVar("T")


class Machine:
    """The mount namespace beside a node's network namespace; vmlinkd runs in both."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._calls = node.lab.dir / "calls"
        mounts = " && ".join(f"mount -t tmpfs tmpfs {place}" for place in _PRIVATE)
        plugins = f"mkdir -p /opt/cni/bin && ln -s {PLUGINS}/* /opt/cni/bin"
        # The client's default path: not every caller passes VMLINK_SOCKET on.
        run_dir = f"mkdir /run/vmlink && mount --bind {node.run_dir} /run/vmlink"
        script = f"{mounts} && {plugins} && {run_dir} && echo ready && exec sleep infinity"
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self._holder.stdout
        assert self._holder.stdout.readline() == b"ready\n"
        self._mounts = Path(f"/proc/{self._holder.pid}/ns/mnt").readlink()
        try:
            node.start(self.enter(str(BIN / "vmlinkd")))
        except BaseException:
            self.close()
            raise

    def enter(self, *argv: str) -> list[str]:
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--", *argv]

    def path(self, inside: str) -> Path:
        return Path(f"/proc/{self._holder.pid}/root{inside}")

    def popen(self, *argv: str, log: Path) -> subprocess.Popen[bytes]:
        with self.node.namespace.entered(), log.open("ab") as out:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.enter(*argv)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a command and return its stdout; a failure shows stdout and stderr."""
        with self.node.namespace.entered():
            done = subprocess.run(
                self.enter(*argv),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60 * SLOWNESS,
            )
        if check and done.returncode:
            raise AssertionError(f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def install(self, name: str, *plugins: Mapping[str, Any]) -> None:
        """Install the client and a network, as an administrator would."""
        conflist = self.node.lab.dir / f"{name}.conflist"
        network = {"cniVersion": "1.0.0", "name": name, "plugins": list(plugins)}
        conflist.write_text(json.dumps(network))
        install = [str(BIN / "vmlinkctl"), "install", "client", "network"]
        self.run(*install, "--conflist", str(conflist))

    def last_call(self) -> list[str]:
        """CNI_COMMAND and CNI_NETNS of the client's latest call; `watch` must have been called."""
        return self._calls.read_text().splitlines()[-1].split(":")

    def watch(self) -> None:
        """Record every call of the installed client from now on."""
        real = self.path("/opt/cni/bin/vmlink")
        real.rename(real.with_name("vmlink.real"))
        note = f'echo "$CNI_COMMAND:$CNI_NETNS" >>{self._calls}'
        real.write_text(f"#!/bin/sh\n{note}\nexec /opt/cni/bin/vmlink.real\n")
        real.chmod(0o755)

    def processes(self) -> list[int]:
        """The runtimes' processes: all in the mount namespace but its holder and vmlinkd."""
        daemon = self.node.daemon.pid if self.node.daemon else 0
        return [p for p in self._inside() if p not in (self._holder.pid, daemon)]

    def _inside(self) -> Iterator[int]:
        for link in Path("/proc").glob("[0-9]*/ns/mnt"):
            with suppress(OSError):
                if link.readlink() == self._mounts:
                    yield int(link.parts[2])

    def close(self) -> None:
        """Kill what the runtimes have left, such as shims; then end vmlinkd and the mounts."""
        for pid in (*self.processes(), *_in_cgroup()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await_(lambda: not [*self.processes(), *_in_cgroup()], "the runtimes' processes have ended")
        if self.node.daemon:
            self.node.stop()
        self._holder.kill()
        self._holder.communicate()
        _reap()
        for directory in _cgroups():
            directory.rmdir()


def veth(node: Node, subnet: str, bridge: str = "ctr0", **keys: Any) -> dict[str, Any]:
    """A network whose pods the node can reach, because its bridge is their gateway."""
    return {
        "type": "vmlink",
        "mode": "veth",
        "linux": {"bridge": bridge, "gateway": True},
        "ipam": node.ipam(subnet, routes=["0.0.0.0/0"]),
        **keys,
    }


def await_(done: Callable[[], T], what: str) -> T:
    """Wait until `done()` is true and return its value. `what` says what is awaited."""
    end = time.monotonic() + _PATIENCE
    while not (value := done()):
        assert time.monotonic() < end, f"not within {_PATIENCE} s: {what}"
        time.sleep(0.02)
    return value


def _cgroups() -> list[Path]:
    """The cgroups below CGROUP in every hierarchy, the deepest first."""
    tops = [p for p in Path("/sys/fs/cgroup").glob(f"**/{CGROUP}") if p.is_dir()]
    return [Path(found) for top in tops for found, _, _ in os.walk(top, topdown=False)]


def _in_cgroup() -> list[int]:
    """The processes of containers, which have mount namespaces of their own."""
    files = (directory / "cgroup.procs" for directory in _cgroups())
    return sorted({int(pid) for file in files for pid in file.read_text().split()})


def _reap() -> None:
    """Reap shims and the like: they daemonized, and the test suite adopted them."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def rootfs(directory: Path) -> Path:
    """A root file system with nothing but busybox."""
    binaries = directory / "bin"
    binaries.mkdir(parents=True)
    (binaries / "busybox").write_bytes(BUSYBOX.read_bytes())
    (binaries / "busybox").chmod(0o755)
    for applet in APPLETS:
        (binaries / applet).symlink_to("busybox")
    for empty in ("dev", "etc", "proc", "run", "sys", "tmp"):
        (directory / empty).mkdir()
    return directory


def image(directory: Path, entrypoint: Sequence[str]) -> Path:
    """`rootfs` as an archive for `docker load` and `ctr images import`."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(rootfs(directory / "layer"), arcname=".")
    diff = "sha256:" + hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint)},
        "rootfs": {"type": "layers", "diff_ids": [diff]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    path = directory / "image.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
