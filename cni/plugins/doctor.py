"""vmlinkctl doctor: what this node can do, mode by mode, and what is missing for the rest.

Modes are asked as STATUS asks them; what they need is tried, not looked up.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from cni.attach.context import Node
from cni.config import network as config
from cni.config.network import Bandwidth, NetConf
from cni.config.settings import Ovs
from cni.config.uplinks import Chained, LinuxUplink, MasterUplink, OvsUplink, Uplink
from cni.errors import NotReady, VmlinkError
from cni.kernel import redirect
from cni.kernel.link_deleter import LinkDeleter
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from cni.modes import MODES
from cni.modes.steps import limits
from cni.ovs.database import Database
from cni.plugins.table import columns
from cni.vmm import descriptors, kvm

_ALL = Bandwidth(8 << 20, 8 << 20, 8 << 20, 8 << 20)
_SWITCH_SECONDS = 2


@dataclass(frozen=True)
class Finding:
    """`reason` says what is missing and what helps; empty when all is there."""

    name: str
    uplink: str = ""
    reason: str = ""

    @property
    def ok(self) -> bool:
        return not self.reason


Check = Callable[[], None]  # raises VmlinkError with the reason
_OTHERS = ("redirect", "bandwidth", "vmlinkd", "vhost-net", "kvm")


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("doctor", help="what this node can do, and what is missing")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--ovs-db",
        metavar="REMOTE",
        default=Ovs.db,
        help="Open vSwitch's database (default: %(default)s)",
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help=f"only these of {', '.join([*MODES, *_OTHERS])}; the exit code is 1 if one is missing",
    )
    parser.set_defaults(action=run)


def run(options: argparse.Namespace) -> None:
    """Prints what it found. Raises NotReady when something that was asked for is missing."""
    wanted = options.what or [*MODES, *_OTHERS]
    for name in wanted:
        if name not in (*MODES, *_OTHERS):
            raise VmlinkError(f"{name!r}: expected one of {', '.join([*MODES, *_OTHERS])}")
    if os.geteuid() != 0:
        raise VmlinkError("doctor tries things in a namespace of its own: be root")
    found = list(_findings(wanted, options.run_dir, options.ovs_db))
    if options.json:
        print(json.dumps([{**asdict(f), "ok": f.ok} for f in found], indent=2))
    else:
        _print(found)
    if missing := sorted({f.name for f in found} - {f.name for f in found if f.ok}):
        raise NotReady(f"cannot be used here: {', '.join(missing)}")


def _findings(wanted: Sequence[str], run_dir: Path, db: str) -> Iterator[Finding]:
    with Namespace.own() as host, closing(Database(Ovs(db), str(run_dir))) as ovs:
        node = Node(host, LinkDeleter(threads=0), run_dir, ovs)
        bridges = _Bridges(ovs)
        for name in MODES:
            for kind in config.MODES[name] if name in wanted else ():
                yield _find(name, kind, partial(_mode, name, kind, node, bridges))
    checks: dict[str, Check] = {
        "vmlinkd": partial(_daemon, run_dir / "vmlinkd.sock"),
        "bandwidth": partial(limits.ready, NetConf("doctor", "tc", Chained(), bandwidth=_ALL)),
        "vhost-net": _vhost_net,
        "kvm": kvm.ready,
    }
    for name in (n for n in _OTHERS if n in wanted):
        if name in checks:
            yield _find(name, "", checks[name])
        else:
            yield from (Finding(name, *engine) for engine in redirect.supported().items())


def _find(name: str, uplink: str, check: Check) -> Finding:
    try:
        check()
    except VmlinkError as e:
        return Finding(name, uplink, e.msg)
    return Finding(name, uplink)


class _Bridges:
    """The bridges of Open vSwitch; asked once, since the answer may take its time to stay away."""

    def __init__(self, ovs: Database) -> None:
        self._ovs = ovs
        self._found: list[str] | VmlinkError | None = None

    def names(self) -> list[str]:
        """Raises VmlinkError when nobody answers."""
        if self._found is None:
            self._found = self._ask()
        if isinstance(self._found, VmlinkError):
            raise self._found
        return self._found

    def _ask(self) -> list[str] | VmlinkError:
        if not self._ovs.may_be_there():
            return NotReady(f"{self._ovs.away()} (the package openvswitch-switch, or --ovs-db)")
        try:
            return sorted(self._ovs.look(_SWITCH_SECONDS).bridges or {})
        except VmlinkError as e:
            return e


def _mode(name: str, kind: str, node: Node, bridges: _Bridges) -> None:
    """It works if it works on one bridge or NIC; else the last one's reason is as good as any."""
    reason = VmlinkError("there is none")
    for uplink in _uplinks(kind, bridges):
        try:
            return MODES[name].ready(NetConf("doctor", name, uplink), node)
        except VmlinkError as e:
            reason = e
    raise reason


def _uplinks(kind: str, bridges: _Bridges) -> list[Uplink]:
    if kind == "linux":
        return [LinuxUplink("doctor")]
    if kind == "chained":
        return [Chained()]
    if kind == "ovs":
        if names := bridges.names():
            return [OvsUplink(name) for name in names]
        raise NotReady("Open vSwitch has no bridge; ovs-vsctl add-br makes one")
    with Netlink() as netlink:
        nics = [MasterUplink(x.name) for x in netlink.links() if x.up and x.name != "lo"]
    if nics:
        return [*nics]
    raise NotReady("no interface of this node is up that could be a master")


def _daemon(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.connect(str(path))
        except OSError as e:
            raise NotReady(
                f"nobody listens at {path} ({e.strerror}); systemctl start vmlinkd.socket"
            ) from e


def _vhost_net() -> None:
    if not descriptors.have_vhost():
        raise NotReady(
            f"{descriptors.VHOST_NET} is missing; load vhost_net; without it taps work, at QEMU's "
            "own pace"
        )


def _print(found: Sequence[Finding]) -> None:
    for line in columns([(f.name, f.uplink, "ok" if f.ok else "no", f.reason) for f in found]):
        print(line)
