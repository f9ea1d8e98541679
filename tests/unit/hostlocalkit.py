"""A network of host-local for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cni.ipam.hostlocal import verbs
from cni.spec.types import AttachmentKey, Result


class Net:
    """One network, whose addresses are kept below `root`.

    `ipam` is its section of that name, `top` further keys of its configuration.
    """

    def __init__(self, root: Path, ipam: dict[str, Any], **top: Any) -> None:
        self.directory = root / "net"
        self.config = {"cniVersion": "1.0.0", "name": "net", **top}
        self.config["ipam"] = {"type": "host-local", "dataDir": str(root), **ipam}

    def request(self, pod: str, ifname: str = "eth0", **args: str) -> verbs.IpamRequest:
        return verbs.IpamRequest(AttachmentKey(pod, ifname), "net", self.config, args)

    def add(self, pod: str, ifname: str = "eth0", **args: str) -> Result:
        return verbs.add(self.request(pod, ifname, **args))

    def ips(self, pod: str, ifname: str = "eth0", **args: str) -> list[str]:
        return [ip.address for ip in self.add(pod, ifname, **args).ips]

    def delete(self, pod: str, ifname: str = "eth0") -> None:
        verbs.delete(self.request(pod, ifname))

    def files(self) -> dict[str, bytes]:
        """The reservations by address; the store's own files are left out."""
        skip = ("lock", "last_reserved_ip.")
        return {
            p.name: p.read_bytes() for p in self.directory.iterdir() if not p.name.startswith(skip)
        }

    def put(self, name: str, content: bytes) -> None:
        """Write a file as another process would, unknown to the store."""
        self.directory.mkdir(exist_ok=True)
        (self.directory / name).write_bytes(content)


def one(subnet: str, **more: Any) -> dict[str, Any]:
    """An `ipam` section with one range."""
    return {"ranges": [[{"subnet": subnet, **more}]]}
