"""vmlink-hook: connect sandboxes whose network another plugin has made to a VM, as an OCI hook.

createRuntime (or the older prestart) does a chained ADD for every interface with an address in the
sandbox's namespace, and writes `devices/<container>.json` in vmlinkd's run directory; poststop
undoes both. The container's state comes on stdin.

Source: OCI runtime specification, "POSIX-platform Hooks".
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cni import __version__, files
from cni.attach.records import Record, Store
from cni.errors import VmlinkError
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from cni.kernel.rtnl_decode import LinkInfo
from cni.plugins import oci, runtime_wrapper
from cni.spec import protocol
from cni.spec import result as results
from cni.spec.types import IP, Interface, Result, Route

NETWORK = "vmlink-hook"
ANNOTATION = "vmlink."
_CONF = {"cniVersion": results.VERSIONS[-1], "name": NETWORK, "type": "vmlink"}
_RTPROT_KERNEL = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a stage of the command line; returns the exit status, 1 for an error on stderr."""
    options = _parser().parse_args(argv)
    try:
        options.action(options)
    except VmlinkError as e:
        print(f"vmlink-hook: {e.msg}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vmlink-hook", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=Path("/run/vmlink"),
        help="vmlinkd's run directory (default: %(default)s)",
    )
    parser.add_argument(
        "--mode",
        default="tc",
        help=f"vmlink's mode, unless the annotation {ANNOTATION}mode has another (%(default)s)",
    )
    verbs = parser.add_subparsers(required=True, metavar="STAGE")
    for stage in ("createRuntime", "prestart"):
        verbs.add_parser(stage, help="make a sandbox ready for a VM").set_defaults(action=_start)
    verbs.add_parser("poststop", help="undo that").set_defaults(action=_stop)
    wrapped = verbs.add_parser(
        "wrap", help="execute an OCI runtime and add this hook to its bundle"
    )
    wrapped.set_defaults(action=_wrap)
    wrapped.add_argument("command", nargs="+", metavar="-- RUNTIME", help="such as /usr/sbin/runc")
    return parser


def _start(options: argparse.Namespace) -> None:
    container = oci.container(_state())
    if not container.netns or oci.joins_a_sandbox(container.annotations):
        return
    with Namespace.open(container.netns) as namespace:
        _attach(options, container, namespace)


def _stop(options: argparse.Namespace) -> None:
    container = oci.identity(_state())
    _description(options.run_dir, container).unlink(missing_ok=True)
    for record in _ours(options.run_dir, container):
        _call(options.run_dir, "DEL", record.container_id, record.ifname, {}, None)


def _wrap(options: argparse.Namespace) -> None:
    hook = [os.path.abspath(sys.argv[0]), "--run-dir", str(options.run_dir.absolute())]
    runtime_wrapper.execute(options.command, [*hook, "--mode", options.mode])


def _state() -> dict[str, Any]:
    return oci.decode("stdin", sys.stdin.buffer.read(oci.LIMIT + 1))


def _attach(options: argparse.Namespace, container: oci.Container, namespace: Namespace) -> None:
    """Attach all interfaces or none: a sandbox that is half ready must not start."""
    for record in _ours(options.run_dir, container.id):
        if record.netns_identity != namespace.identity:  # of an earlier sandbox without a poststop
            _call(options.run_dir, "DEL", record.container_id, record.ifname, {}, None)
    keys = {"mode": options.mode} | _keys(container.annotations)
    attached = {r.ifname for r in _records(options.run_dir, namespace)}
    done: list[str] = []
    try:
        for ifname, result in list(_interfaces(namespace)):
            if ifname not in attached:
                conf = {**keys, "prevResult": results.dump(result, results.VERSIONS[-1])}
                _call(options.run_dir, "ADD", container.id, ifname, conf, namespace)
                done.append(ifname)
        _describe(options.run_dir, container.id, _records(options.run_dir, namespace))
    except BaseException:
        for ifname in reversed(done):
            with suppress(VmlinkError):
                _call(options.run_dir, "DEL", container.id, ifname, {}, namespace)
        raise


def _keys(annotations: Mapping[str, str]) -> dict[str, Any]:
    """The keys of the network configuration in a container's annotations, which vmlinkd checks."""
    keys: dict[str, Any] = {}
    if mode := annotations.get(ANNOTATION + "mode"):
        keys["mode"] = mode
    if queues := annotations.get(ANNOTATION + "queues"):
        keys["queues"] = int(queues) if queues.isascii() and queues.isdecimal() else queues
    return keys


def _ours(run_dir: Path, container: str) -> list[Record]:
    """The records of what this hook has attached for the container."""
    records = Store(run_dir / "state").all()
    return [r for r in records if (r.container_id, r.network) == (container, NETWORK)]


def _records(run_dir: Path, namespace: Namespace) -> list[Record]:
    """The records of a namespace as they were attached, also by the CNI plugin under another id."""
    records = sorted(Store(run_dir / "state").all(), key=lambda r: r.order)
    return [r for r in records if r.netns_identity == namespace.identity and not r.intent]


def _describe(run_dir: Path, container: str, records: Sequence[Record]) -> None:
    """Write down the NICs and the command that executes a VMM with them, for the VMM's launcher."""
    attached = [r for r in records if r.device]
    if not attached:
        print(f"vmlink-hook: {container} has no interface for a VM", file=sys.stderr)
        return
    ctl = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "vmlinkctl")
    known_as = attached[0].container_id
    description = {
        "container": known_as,
        "devices": [r.device for r in attached],
        "exec": [ctl, "--run-dir", str(run_dir.absolute()), "exec", known_as, "--"],
    }
    path = _description(run_dir, container)
    path.parent.mkdir(mode=0o755, exist_ok=True)
    files.replace(path, json.dumps(description, indent=2).encode() + b"\n")


def _description(run_dir: Path, container: str) -> Path:
    return run_dir / "devices" / f"{container}.json"


def _interfaces(namespace: Namespace) -> Iterator[tuple[str, Result]]:
    """The interfaces that have an address, each as the result of the plugin that made it."""
    with namespace.entered(), Netlink() as netlink:
        for link in netlink.links():
            addresses = netlink.addresses(link.index)
            if link.name != "lo" and addresses:
                yield link.name, _as_result(link, addresses, netlink, namespace.path)


def _as_result(link: LinkInfo, addresses: Sequence[str], netlink: Netlink, path: str) -> Result:
    routes = [r for r in netlink.routes(link.index) if r.protocol != _RTPROT_KERNEL]
    return Result(
        interfaces=(Interface(link.name, link.mac, link.mtu, path),),
        ips=tuple(IP(address, interface=0) for address in addresses),
        routes=tuple(
            Route(r.dst, r.gw, r.mtu, r.advmss, r.priority, r.table, r.scope) for r in routes
        ),
    )


def _call(
    run_dir: Path,
    verb: str,
    container: str,
    ifname: str,
    conf: Mapping[str, Any],
    namespace: Namespace | None,
) -> None:
    env = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container,
        "CNI_IFNAME": ifname,
        "CNI_NETNS": namespace.path if namespace else "",
        "CNI_PATH": os.environ.get("CNI_PATH", ""),
    }
    stdin = json.dumps({**_CONF, **conf}).encode()
    fd = namespace.fd if namespace else None
    code, body = protocol.call(str(run_dir / "vmlinkd.sock"), env, stdin, fd)
    if code:
        raise VmlinkError(
            f"{verb} of {ifname}: {oci.decode('vmlinkd', body).get('msg')}", code=code
        )


if __name__ == "__main__":
    sys.exit(main())
