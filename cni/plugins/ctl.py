"""vmlinkctl: what is attached here, what a VMM needs for it, and a VMM started with it.

It reads the records in the run directory, so it works while vmlinkd is away.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cni import __version__, device, macvtap, tuntap
from cni.device import Device
from cni.errors import UnknownContainer, VmlinkError
from cni.netns import Namespace
from cni.plugins import doctor, install
from cni.state import Record, Store

_VHOST = "/dev/vhost-net"


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        options.action(options)
        sys.stdout.flush()
    except VmlinkError as e:
        print(f"vmlinkctl: {e.msg}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader has seen enough; the interpreter must not try to flush at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vmlinkctl", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=Path("/run/vmlink"),
        help="vmlinkd's run directory (default: %(default)s)",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="the attachments of this node")
    listing.set_defaults(action=_list)
    show = verbs.add_parser("show", help="everything about one container's attachments")
    show.set_defaults(action=_show)
    for verb in (listing, show):
        verb.add_argument("--json", action="store_true", help="for programs")
    tell = verbs.add_parser("device", help="what a VMM needs to know of the NICs")
    tell.add_argument("--format", choices=("json", "qemu"), default="json")
    tell.set_defaults(action=_device)
    run = verbs.add_parser("exec", help="open the NICs' descriptors and execute a VMM with them")
    run.set_defaults(action=_exec)
    for verb in (show, tell, run):
        verb.add_argument("container", metavar="CONTAINER_ID")
        verb.add_argument("--ifname", help="this interface only (default: all)")
    run.add_argument("command", nargs="+", metavar="-- COMMAND", help="such as qemu-system-x86_64")
    doctor.register(verbs)
    install.register(verbs)
    return parser


def _records(options: argparse.Namespace) -> list[Record]:
    """The container's attachments, by interface name. Raises UnknownContainer for none."""
    found = [
        r
        for r in Store(options.run_dir / "state").all()
        if r.container_id == options.container and options.ifname in (None, r.ifname)
    ]
    if not found:
        what = f"{options.container}/{options.ifname}" if options.ifname else options.container
        raise UnknownContainer(f"{what} is not attached here; see vmlinkctl list")
    return sorted(found, key=lambda r: r.ifname)


def _devices(options: argparse.Namespace) -> list[Device]:
    """What a VMM can open; a container's plain veth is nothing for one."""
    records = _records(options)
    if any(r.intent for r in records):
        raise VmlinkError(f"{options.container} is being attached; try again")
    found = [_from_json(r.device) for r in records if r.device]
    if not found:
        raise VmlinkError(f"{options.container} has no NIC for a VMM: its mode is veth")
    return found


def _from_json(data: dict[str, Any]) -> Device:
    routes = tuple((dst, gw) for dst, gw in data["routes"])
    return Device(**{**data, "addresses": tuple(data["addresses"]), "routes": routes})


def _list(options: argparse.Namespace) -> None:
    records = list(Store(options.run_dir / "state").all())
    rows = [_row(r) for r in records]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    head = ("CONTAINER", "IFNAME", "NETWORK", "MODE", "REDIRECT", "MAC", "ADDRESSES", "STATE")
    table = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[n]) for line in table) for n in range(len(head))]
    for line in table:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def _row(record: Record) -> dict[str, Any]:
    return {
        "container": record.container_id,
        "ifname": record.ifname,
        "network": record.network,
        "mode": record.mode,
        "redirect": record.facts.get("redirect", ""),
        "mac": record.facts.get("mac", ""),
        "addresses": [ip["address"] for ip in record.result.get("ips", [])],
        "state": "unfinished" if record.intent else "attached",
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    values = [",".join(v) if isinstance(v, list) else v for v in row.values()]
    return tuple(v or "-" for v in values)


def _show(options: argparse.Namespace) -> None:
    shown = [
        {
            **_row(r),
            "netns": r.netns_path,
            "interfaces": r.result.get("interfaces", []),
            "routes": r.result.get("routes", []),
            "device": r.device,
            "steps": r.plan["prepare"] + r.plan["bind"],
        }
        for r in _records(options)
    ]
    if options.json:
        print(json.dumps(shown, indent=2))
        return
    for record in shown:
        for key, value in record.items():
            _print_field(key, value)
        print()


def _print_field(key: str, value: Any) -> None:
    items = value if isinstance(value, list) else [value]
    for n, item in enumerate(items):
        text = item
        if isinstance(item, dict):
            text = "  ".join(f"{k}={v}" for k, v in item.items() if v not in ("", None, []))
        print(f"{key if n == 0 else '':<12}{text}")


def _device(options: argparse.Namespace) -> None:
    found = _devices(options)
    if options.format == "json":
        print(json.dumps([vars(d) for d in found], indent=2))
        return
    # The numbers that `exec` would give: what it opens comes right after stdio.
    free = itertools.count(3)
    for one in found:
        pairs = one.queues if one.kind != "vhostuser" else 0
        fds = list(itertools.islice(free, pairs))
        vhost = list(itertools.islice(free, pairs)) if os.path.exists(_VHOST) else []
        print(" ".join(device.qemu(one, fds, vhost)))


def _exec(options: argparse.Namespace) -> None:
    arguments: list[str] = []
    for one in _devices(options):
        _require_shared_memory(one, options.command)
        fds = _open(one)
        vhost = _open_vhost(one.queues) if fds else []
        for fd in (*fds, *vhost):
            os.set_inheritable(fd, True)
        arguments += device.qemu(one, fds, vhost)
    try:
        os.execvp(options.command[0], [*options.command, *arguments])
    except OSError as e:
        raise VmlinkError(f"cannot execute {options.command[0]}: {e.strerror}") from e


def _require_shared_memory(one: Device, command: Sequence[str]) -> None:
    if one.kind == "vhostuser" and not any("share=on" in word for word in command):
        raise VmlinkError(
            f"{one.id} is vhost-user, and the guest's memory must be shared: give QEMU -object "
            "memory-backend-memfd,id=mem,size=SIZE,share=on and -machine memory-backend=mem"
        )


def _open(one: Device) -> list[int]:
    """The descriptors of its queues; a VMM makes the socket of vhost-user itself."""
    if one.kind == "vhostuser":
        return []
    if one.kind == "macvtap":
        return macvtap.open_macvtap(one.path, one.queues)
    if not one.netns:
        return tuntap.open_tap(one.tap, one.queues)
    with Namespace.open(one.netns) as namespace, namespace.entered():
        return tuntap.open_tap(one.tap, one.queues)


def _open_vhost(queues: int) -> list[int]:
    """One descriptor for each pair where the kernel has vhost-net, else none."""
    if not os.path.exists(_VHOST):
        return []
    return [os.open(_VHOST, os.O_RDWR | os.O_CLOEXEC) for _ in range(queues)]


if __name__ == "__main__":
    sys.exit(main())
