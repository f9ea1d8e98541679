"""A node as a runtime sees it: /run, /opt, /var/lib and /etc/cni of its own, and vmlink installed.

Runtimes have fixed places (`ctr run --cni` more than any), so they get a mount namespace in which
these are empty and private. What still lives there at the end is ended by its own id.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.testbed.node import BIN, PLUGINS, Node

BUSYBOX = Path("/bin/busybox")
APPLETS = "sh sleep ping ip nc cat".split()
IMAGE = "vmlink.test/busybox:1"
CGROUP = f"vmlink-{os.getpid()}"  # the parent of all that runtimes make
_PRIVATE = ("/run", "/opt", "/var/lib", "/etc/cni")
_PATIENCE = 20.0  # seconds


class Machine:
    """The mount namespace beside a node's network namespace; vmlinkd runs in both."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._calls = node.lab.dir / "calls"
        mounts = " && ".join(f"mount -t tmpfs tmpfs {place}" for place in _PRIVATE)
        plugins = f"mkdir -p /opt/cni/bin && ln -s {PLUGINS}/* /opt/cni/bin"
        # Where the client looks without VMLINK_SOCKET, which not all that call it pass on.
        run_dir = f"mkdir /run/vmlink && mount --bind {node.run_dir} /run/vmlink"
        script = f"{mounts} && {plugins} && {run_dir} && echo ready && exec sleep infinity"
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self._holder.stdout
        assert self._holder.stdout.readline() == b"ready\n"
        self._mounts = os.readlink(f"/proc/{self._holder.pid}/ns/mnt")
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
        """stdout; a failure shows what was said on both."""
        with self.node.namespace.entered():
            done = subprocess.run(
                self.enter(*argv),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
            )
        if check and done.returncode:
            raise AssertionError(f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def install(self, name: str, *plugins: Mapping[str, Any]) -> None:
        """The client and a network, as an administrator puts them there."""
        conflist = self.node.lab.dir / f"{name}.conflist"
        network = {"cniVersion": "1.0.0", "name": name, "plugins": list(plugins)}
        conflist.write_text(json.dumps(network))
        install = [str(BIN / "vmlinkctl"), "install", "client", "network"]
        self.run(*install, "--conflist", str(conflist))

    def last_call(self) -> list[str]:
        """CNI_COMMAND and CNI_NETNS of the client's latest call; see `watch`."""
        return self._calls.read_text().splitlines()[-1].split(":")

    def watch(self) -> None:
        """From now on the installed client's calls are written down."""
        real = self.path("/opt/cni/bin/vmlink")
        real.rename(real.with_name("vmlink.real"))
        note = f'echo "$CNI_COMMAND:$CNI_NETNS" >>{self._calls}'
        real.write_text(f"#!/bin/sh\n{note}\nexec /opt/cni/bin/vmlink.real\n")
        real.chmod(0o755)

    def processes(self) -> list[int]:
        """Those of the runtimes: all in the mount namespace but the holder and vmlinkd."""
        daemon = self.node.daemon.pid if self.node.daemon else 0
        return [p for p in self._inside() if p not in (self._holder.pid, daemon)]

    def _inside(self) -> Iterator[int]:
        for link in Path("/proc").glob("[0-9]*/ns/mnt"):
            with suppress(OSError):
                if os.readlink(link) == self._mounts:
                    yield int(link.parts[2])

    def close(self) -> None:
        """What runtimes have left is ended, shims among it; then vmlinkd and the mounts."""
        for pid in (*self.processes(), *_in_cgroup()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await_(lambda: not [*self.processes(), *_in_cgroup()], "their processes have ended")
        if self.node.daemon:
            self.node.stop()
        self._holder.kill()
        self._holder.communicate()
        _reap()
        for directory in _cgroups():
            directory.rmdir()


def veth(node: Node, subnet: str, bridge: str = "ctr0", **keys: Any) -> dict[str, Any]:
    """A network whose pods are heard from the node, which is the bridge's gateway."""
    return {
        "type": "vmlink",
        "mode": "veth",
        "linux": {"bridge": bridge, "gateway": True},
        "ipam": node.ipam(subnet, routes=["0.0.0.0/0"]),
        **keys,
    }


def await_(done: Any, what: str) -> Any:
    """Until `done()` is true; its value. For what other programs do in their own time."""
    end = time.monotonic() + _PATIENCE
    while not (value := done()):
        assert time.monotonic() < end, f"not in {_PATIENCE} s: {what}"
        time.sleep(0.02)
    return value


def _cgroups() -> list[Path]:
    """In all hierarchies, the deepest first."""
    tops = [p for p in Path("/sys/fs/cgroup").glob(f"**/{CGROUP}") if p.is_dir()]
    return [Path(found) for top in tops for found, _, _ in os.walk(top, topdown=False)]


def _in_cgroup() -> list[int]:
    """The containers, whose mount namespaces are their own."""
    files = (directory / "cgroup.procs" for directory in _cgroups())
    return sorted({int(pid) for file in files for pid in file.read_text().split()})


def _reap() -> None:
    """Shims and the like lost their parents on purpose, and the suite has adopted them."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def rootfs(directory: Path) -> Path:
    """A root file system of busybox alone."""
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
    """`rootfs` as an archive that `docker load` and `ctr images import` take."""
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
