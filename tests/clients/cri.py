"""containerd on a Machine, and the part of the Container Runtime Interface that sandboxes need.

The messages are encoded by hand: a dozen fields of k8s.io/cri-api's api.proto (runtime.v1).
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from bench.testbed.slowness import SLOWNESS
from tests.clients.clientkit import CGROUP, IMAGE, Machine, await_

CONFIG = """\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  disable_apparmor = true
  # The tests may run where no process may lower its OOM score.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.vm]
      runtime_type = "io.containerd.runc.v2"
      pod_annotations = ["vmlink.*"]
      cni_conf_dir = "{vm_networks}"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.vm.options]
        BinaryName = "{vm_runtime}"
"""
HANDLER = """\
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]
        runtime_type = "io.containerd.runc.v2"
        cni_conf_dir = "{networks}"
"""


class Containerd:
    """Pods of the runtime handler `vm` use `vm_runtime` and the directory `vm_networks`.

    `others` are more handlers, each with the directory of its networks.
    """

    def __init__(
        self,
        machine: Machine,
        archive: Path,
        vm_runtime: Path,
        vm_networks: Path,
        others: Mapping[str, Path],
    ) -> None:
        self.machine = machine
        home = machine.node.lab.dir
        self.socket, self.log = home / "containerd.sock", home / "containerd.log"
        config = home / "containerd.toml"
        places = {"vm_runtime": vm_runtime, "vm_networks": vm_networks}
        handlers = [HANDLER.format(name=name, networks=path) for name, path in others.items()]
        text = CONFIG.format(socket=self.socket, image=IMAGE, **places) + "".join(handlers)
        config.write_text(text)
        self._process = machine.popen("containerd", "--config", str(config), log=self.log)
        self._channel = grpc.insecure_channel(f"unix:{self.socket}")
        try:
            self._import(archive)
        except BaseException:
            self.close()
            raise

    def _import(self, archive: Path) -> None:
        grpc.channel_ready_future(self._channel).result(20)
        load = "--namespace k8s.io images import --snapshotter native".split()
        self.ctr(*load, str(archive))
        known = "ImageService/ImageStatus", {1: {1: IMAGE}}
        await_(lambda: self._call(*known), "the image is known")

    def ctr(self, *arguments: str, check: bool = True) -> str:
        return self.machine.run("ctr", "--address", str(self.socket), *arguments, check=check)

    def spawn_ctr(self, *arguments: str) -> subprocess.Popen[bytes]:
        return self.machine.popen("ctr", "--address", str(self.socket), *arguments, log=self.log)

    def run_pod(self, name: str, handler: str = "", **annotations: str) -> str:
        """Run a sandbox and return its id; mode="tc" is its annotation `vmlink.mode`.

        Raises grpc.RpcError.
        """
        ours = {f"vmlink.{key}": value for key, value in annotations.items()}
        return self.run_annotated(name, handler, ours)

    def run_annotated(self, name: str, handler: str, annotations: Mapping[str, str]) -> str:
        """Run a sandbox with these annotations and return its id. Raises grpc.RpcError."""
        metadata = {1: name, 2: f"uid-{name}", 3: "default"}
        linux = {1: f"/{CGROUP}"}
        entries = [{1: key, 2: value} for key, value in annotations.items()]
        request = {1: {1: metadata, 2: name, 3: "/run/logs", 7: entries, 8: linux}, 2: handler}
        return text(self._call("RuntimeService/RunPodSandbox", request)[1])

    def pod_ip(self, sandbox: str) -> str:
        status = self._call("RuntimeService/PodSandboxStatus", {1: sandbox})[1]
        return text(fields(fields(status)[5])[1])

    def a_pod(self) -> str:
        """The id of one of the sandboxes, also of those that could not be made; "" for none."""
        known = self._call("RuntimeService/ListPodSandbox", {})
        return text(fields(known[1])[1]) if known else ""

    def stop_pod(self, sandbox: str) -> None:
        self._call("RuntimeService/StopPodSandbox", {1: sandbox})

    def remove_pod(self, sandbox: str) -> None:
        self._call("RuntimeService/RemovePodSandbox", {1: sandbox})

    def _call(self, method: str, request: Mapping[int, Any]) -> dict[int, bytes]:
        call = self._channel.unary_unary(f"/runtime.v1.{method}")
        return fields(call(message(request), timeout=60 * SLOWNESS))

    def close(self) -> None:
        self._channel.close()
        self._process.terminate()
        self._process.wait(20)


def message(values: Mapping[int, Any]) -> bytes:
    """Encode a protobuf message: strings, messages and lists of them, by field number."""
    out = b""
    for number, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            data = message(one) if isinstance(one, Mapping) else one.encode()
            out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return out


def fields(data: bytes) -> dict[int, bytes]:
    """Decode a protobuf message: the last value of each field that is not a number."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        tag, at = _read(data, at)
        length, at = _read(data, at)
        if tag & 7 == 2:
            found[tag >> 3] = data[at : at + length]
            at += length
    return found


def text(data: bytes) -> str:
    return data.decode()


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
