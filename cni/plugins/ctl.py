"""vmlinkctl: list attachments, connect them to a VMM, install vmlink and check the node.

It reads the records in the run directory, so it works while vmlinkd does not run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cni import __version__
from cni.attach.records import Record, Store
from cni.daemon.pool_store import read_json
from cni.errors import UnknownContainer, VmlinkError
from cni.modes.steps.guard import drops_of
from cni.modes.steps.links import Nic
from cni.modes.steps.redirect import RedirectEngine
from cni.plugins import doctor, install
from cni.plugins.table import columns
from cni.vmm import cloud_hypervisor, descriptors, formats, qemu_hotplug
from cni.vmm.device import Device
from cni.vmm.formats import qemu


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb of the command line; returns the exit status, 1 for an error on stderr."""
    options = _parser().parse_args(argv)
    try:
        options.action(options)
        sys.stdout.flush()
    except VmlinkError as e:
        print(f"vmlinkctl: {e.msg}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (such as head) has gone. The interpreter would fail to flush stdout at its end.
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
    show = verbs.add_parser("show", help="everything about a container's attachments")
    show.set_defaults(action=_show)
    pool = verbs.add_parser("pool", help="the ports that are prepared for future pods")
    pool.set_defaults(action=_pool)
    for verb in (listing, show, pool):
        verb.add_argument("--json", action="store_true", help="print JSON")
    describe = verbs.add_parser("device", help="describe a container's NICs for a VMM or guest")
    describe.add_argument(
        "--format", choices=formats.FORMATS, default="json", help="default: %(default)s"
    )
    describe.set_defaults(action=_device)
    run = verbs.add_parser("exec", help="execute QEMU with a container's NICs")
    run.set_defaults(action=_exec)
    plug = verbs.add_parser("plug", help="plug a NIC into a running QEMU or Cloud Hypervisor")
    plug.set_defaults(action=_plug)
    unplug = verbs.add_parser("unplug", help="unplug it again")
    unplug.set_defaults(action=_unplug)
    for verb in (show, describe, run, plug, unplug):
        verb.add_argument("container", metavar="CONTAINER_ID")
    for verb in (show, describe, run):
        verb.add_argument("--ifname", help="this interface only (default: all)")
    run.add_argument("command", nargs="+", metavar="-- COMMAND", help="such as qemu-system-x86_64")
    for verb in (plug, unplug):
        _add_vmm(verb)
    doctor.register(verbs)
    install.register(verbs)
    return parser


def _add_vmm(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("ifname", metavar="IFNAME")
    vmm = verb.add_mutually_exclusive_group(required=True)
    vmm.add_argument("--qmp", metavar="SOCKET", help="QEMU's monitor, of -qmp unix:SOCKET,...")
    vmm.add_argument("--api-socket", metavar="SOCKET", help="Cloud Hypervisor's --api-socket")
    verb.add_argument(
        "--timeout",
        type=_seconds,
        default=30,
        metavar="SECONDS",
        help="how long VMM and guest may take together (default: %(default)s)",
    )


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < (seconds := float(text)) < 1e6:
            return seconds
    raise argparse.ArgumentTypeError(f"expected seconds above 0, found {text!r}")


def _records(options: argparse.Namespace) -> list[Record]:
    """The container's attachments, as they were attached. Raises UnknownContainer for none."""
    records = [
        r
        for r in Store(options.run_dir / "state").all()
        if r.container_id == options.container and options.ifname in (None, r.ifname)
    ]
    if not records:
        what = f"{options.container}/{options.ifname}" if options.ifname else options.container
        raise UnknownContainer(f"{what} is not attached here; see vmlinkctl list")
    return sorted(records, key=lambda r: r.order)


def _devices(options: argparse.Namespace) -> list[Device]:
    """The NICs that a VMM can have; a plain veth is none. Raises VmlinkError for none."""
    records = _records(options)
    if any(r.intent for r in records):
        raise VmlinkError(f"{options.container} is being attached; try again")
    devices = [Device.from_json(r.device) for r in records if r.device]
    if not devices:
        raise VmlinkError(
            f"{options.container} has no NIC for a VMM: its mode is veth, or Kata makes the tap "
            "itself; use mode tc, tap, macvtap or vhostuser"
        )
    return devices


def _list(options: argparse.Namespace) -> None:
    records = sorted(Store(options.run_dir / "state").all(), key=lambda r: r.order)
    head = ("CONTAINER", "IFNAME", "NETWORK", "MODE", "REDIRECT", "MAC", "ADDRESSES", "STATE")
    _print_table(options, head, [_row(r) for r in records])


def _pool(options: argparse.Namespace) -> None:
    numbers = ("SIZE", "REFILL_BELOW", "READY", "MADE", "GIVEN", "RETURNED", "THROWN_AWAY")
    head = ("NETWORK", "MODE", *numbers, "ERROR")
    pools = [read_json(path) for path in sorted(options.run_dir.glob("pool/*/pool.json"))]
    rows = [{name.lower(): pool[name.lower()] for name in head} for pool in pools if pool]
    _print_table(options, head, rows)


def _print_table(
    options: argparse.Namespace, head: Sequence[str], rows: Sequence[dict[str, Any]]
) -> None:
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for line in columns([head, *(_cells(row) for row in rows)]):
        print(line)


def _row(record: Record) -> dict[str, Any]:
    facts = record.known_facts()
    engine, nic = facts.get(RedirectEngine), facts.get(Nic)
    return {
        "container": record.container_id,
        "ifname": record.ifname,
        "network": record.network,
        "mode": record.mode,
        "redirect": engine.name if engine else "",
        "mac": nic.mac if nic else "",
        "addresses": [ip["address"] for ip in record.result.get("ips", [])],
        "state": "unfinished" if record.intent else "attached",
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    values = [",".join(v) if isinstance(v, list) else str(v) for v in row.values()]
    return tuple(v or "-" for v in values)


def _show(options: argparse.Namespace) -> None:
    shown = [
        {
            **_row(r),
            "netns": r.netns_path,
            "interfaces": r.result.get("interfaces", []),
            "routes": r.result.get("routes", []),
            "device": r.device,
            "drops": drops_of(r.known_facts()),
            "steps": r.steps["prepare"] + r.steps["bind"],
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
    print(formats.FORMATS[options.format](_devices(options), descriptors.have_vhost()))


def _exec(options: argparse.Namespace) -> None:
    arguments: list[str] = []
    for one in _devices(options):
        _require_shared_memory(one, options.command)
        fds, vhost = descriptors.open_queues(one)
        for fd in (*fds, *vhost):
            os.set_inheritable(fd, True)
        arguments += qemu.arguments(one, fds, vhost)
    try:
        os.execvp(options.command[0], [*options.command, *arguments])
    except OSError as e:
        raise VmlinkError(f"cannot execute {options.command[0]}: {e.strerror}") from e


def _plug(options: argparse.Namespace) -> None:
    (one,) = _devices(options)
    if options.qmp:
        qemu_hotplug.plug(options.qmp, one, options.timeout)
    else:
        cloud_hypervisor.add(options.api_socket, one, options.timeout)


def _unplug(options: argparse.Namespace) -> None:
    (one,) = _devices(options)
    if options.qmp:
        qemu_hotplug.unplug(options.qmp, one, options.timeout)
    else:
        cloud_hypervisor.remove(options.api_socket, one, options.timeout)


def _require_shared_memory(one: Device, command: Sequence[str]) -> None:
    if one.kind == "vhostuser" and not any("share=on" in argument for argument in command):
        raise VmlinkError(
            f"{one.id} is vhost-user, and the guest's memory must be shared: {qemu_hotplug.SHARED}"
        )


if __name__ == "__main__":
    sys.exit(main())
