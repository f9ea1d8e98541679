"""vmlink-hook: the OCI hook for sandboxes whose network another plugin made.

createRuntime (and the old prestart) put a tap behind every addressed interface that they find in
the sandbox's namespace, by a chained ADD; poststop takes them away. The state comes on stdin.
Source: OCI runtime specification, "POSIX-platform Hooks" and "State".
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cni import __version__, wire
from cni import result as results
from cni.errors import BadEnvironment, CannotDecode, VmlinkError
from cni.netlink import Netlink
from cni.netns import Namespace
from cni.rtdecode import LinkInfo
from cni.state import Store
from cni.types import IP, AttachmentKey, Interface, Result, Route

NETWORK = "vmlink-hook"
_STATE_LIMIT = 1 << 20
_RTPROT_KERNEL = 2


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="vmlink-hook", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("stage", choices=("createRuntime", "prestart", "poststop"))
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=Path("/run/vmlink"),
        help="vmlinkd's run directory (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    try:
        state = _decode("stdin", sys.stdin.buffer.read(_STATE_LIMIT + 1))
        container = _container(state)
        if options.stage == "poststop":
            _detach(options.run_dir, container)
        else:
            _attach(options.run_dir, container, _namespace_path(state))
    except VmlinkError as e:
        print(f"vmlink-hook: {e.msg}", file=sys.stderr)
        return 1
    return 0


def _decode(where: str, data: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(data[:_STATE_LIMIT])
    except (ValueError, RecursionError) as e:
        raise CannotDecode(f"{where}: not JSON: {e}") from e
    if not isinstance(decoded, dict):
        raise CannotDecode(f"{where}: expected an object, found {type(decoded).__name__}")
    return decoded


def _container(state: dict[str, Any]) -> str:
    container = state.get("id")
    if not isinstance(container, str) or not container:
        raise CannotDecode("state: id: expected the container's id")
    return container


def _namespace_path(state: dict[str, Any]) -> str:
    """From the bundle first: Kata's state has the hypervisor's pid, whose namespace may differ."""
    config = Path(str(state.get("bundle", "")), "config.json")
    if config.is_absolute() and config.is_file():
        spec = _decode(str(config), config.read_bytes())
        for namespace in (spec.get("linux") or {}).get("namespaces") or []:
            if namespace.get("type") == "network" and namespace.get("path"):
                return str(namespace["path"])
    pid = state.get("pid")
    if isinstance(pid, int) and not isinstance(pid, bool) and pid > 0:
        return f"/proc/{pid}/ns/net"
    raise BadEnvironment("state: neither bundle/config.json nor pid tells the network namespace")


def _attach(run_dir: Path, container: str, path: str) -> None:
    with Namespace.open(path) as namespace:
        for ifname, found in _found(container, namespace, path):
            conf = {
                "cniVersion": results.VERSIONS[-1],
                "name": NETWORK,
                "type": "vmlink",
                "prevResult": results.dump(found, results.VERSIONS[-1]),
            }
            _call(run_dir, "ADD", container, ifname, conf, path, namespace.fd)


def _detach(run_dir: Path, container: str) -> None:
    conf = {"cniVersion": results.VERSIONS[-1], "name": NETWORK, "type": "vmlink"}
    for record in list(Store(run_dir / "state").all()):
        if (record.container_id, record.network) == (container, NETWORK):
            _call(run_dir, "DEL", container, record.ifname, conf, record.netns_path, None)


def _found(container: str, namespace: Namespace, path: str) -> Iterator[tuple[str, Result]]:
    """The addressed interfaces that vmlink has not made ready itself, as other plugins' results."""
    with namespace.entered(), Netlink() as netlink:
        for link in netlink.links():
            addresses = netlink.addresses(link.index)
            ours = link.group == AttachmentKey(container, link.name).group
            if link.name == "lo" or ours or not addresses:
                continue
            yield link.name, _as_result(link, addresses, netlink, path)


def _as_result(link: LinkInfo, addresses: Sequence[str], netlink: Netlink, path: str) -> Result:
    routes = [r for r in netlink.routes(link.index) if r.protocol != _RTPROT_KERNEL]
    return Result(
        interfaces=(Interface(link.name, link.mac, link.mtu, path),),
        ips=tuple(IP(address, interface=0) for address in addresses),
        routes=tuple(Route(r.dst, r.gw) for r in routes),
    )


def _call(
    run_dir: Path,
    verb: str,
    container: str,
    ifname: str,
    conf: dict[str, Any],
    path: str,
    fd: int | None,
) -> None:
    env = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container,
        "CNI_IFNAME": ifname,
        "CNI_NETNS": path,
        "CNI_PATH": os.environ.get("CNI_PATH", ""),
    }
    code, body = wire.call(str(run_dir / "vmlinkd.sock"), env, json.dumps(conf).encode(), fd)
    if code:
        raise VmlinkError(f"{verb} of {ifname}: {_decode('vmlinkd', body).get('msg')}", code=code)


if __name__ == "__main__":
    sys.exit(main())
