"""vmlinkctl doctor: which modes and features work on this node, and what is missing for the rest.

Each mode is checked as STATUS checks it. What a mode needs is tried out rather than looked up.
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
from cni.config.network import NetConf
from cni.config.settings import Ovs
from cni.config.uplinks import Chained, LinuxUplink, MasterUplink, OvsUplink, Uplink
from cni.errors import NotReady, VmlinkError
from cni.kernel import redirect
from cni.kernel.link_deleter import LinkDeleter
from cni.kernel.netlink import Netlink
from cni.kernel.netns import Namespace
from cni.modes import MODES
from cni.modes.steps import token_bucket
from cni.ovs import open_database
from cni.ovs.database import Database
from cni.plugins.table import columns
from cni.vmm import descriptors, kvm

_SWITCH_SECONDS = 2


@dataclass(frozen=True)
class Finding:
    """One line of the report; `reason` says what is missing and what to do, "" if nothing is."""

    name: str
    uplink: str = ""
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is missing."""
        return not self.reason


Check = Callable[[], None]  # raises VmlinkError with the reason
_OTHERS = ("redirect", "bandwidth", "vmlinkd", "vhost-net", "kvm")


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `doctor` to vmlinkctl's command line."""
    parser = verbs.add_parser("doctor", help="what works on this node, and what is missing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--ovs-db",
        metavar="REMOTE",
        default=Ovs.db,
        help="the database of Open vSwitch (default: %(default)s)",
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help=(
            f"check only these of {', '.join([*MODES, *_OTHERS])}; the exit status is 1 if "
            "something does not work"
        ),
    )
    parser.set_defaults(action=run)


def run(options: argparse.Namespace) -> None:
    """Check what was asked for and print the report.

    Raises NotReady when something does not work, VmlinkError for a wrong command line.
    """
    wanted = options.what or [*MODES, *_OTHERS]
    for name in wanted:
        if name not in (*MODES, *_OTHERS):
            raise VmlinkError(f"{name!r}: expected one of {', '.join([*MODES, *_OTHERS])}")
    if os.geteuid() != 0:
        raise VmlinkError("doctor tries things in a network namespace of its own; run it as root")
    findings = list(_findings(wanted, options.run_dir, options.ovs_db))
    if options.json:
        print(json.dumps([{**asdict(f), "ok": f.ok} for f in findings], indent=2))
    else:
        _print(findings)
    if missing := sorted({f.name for f in findings} - {f.name for f in findings if f.ok}):
        raise NotReady(f"cannot be used here: {', '.join(missing)}")


def _findings(wanted: Sequence[str], run_dir: Path, db: str) -> Iterator[Finding]:
    with Namespace.own() as host, closing(open_database(Ovs(db), str(run_dir))) as ovs:
        node = Node(host, LinkDeleter(threads=0), run_dir, ovs)
        bridges = _Bridges(ovs)
        for name in MODES:
            for kind in MODES[name].rules.uplinks if name in wanted else ():
                yield _find(name, kind, partial(_mode, name, kind, node, bridges))
    checks: dict[str, Check] = {
        "vmlinkd": partial(_daemon, run_dir / "vmlinkd.sock"),
        "bandwidth": token_bucket.require,
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
    """The bridges of Open vSwitch, read once: a server that does not answer costs seconds."""

    def __init__(self, ovs: Database) -> None:
        self._ovs = ovs
        self._answer: list[str] | VmlinkError | None = None

    def names(self) -> list[str]:
        """Their names. Raises VmlinkError when Open vSwitch does not answer."""
        if self._answer is None:
            self._answer = self._ask()
        if isinstance(self._answer, VmlinkError):
            raise self._answer
        return self._answer

    def _ask(self) -> list[str] | VmlinkError:
        if not self._ovs.may_be_there():
            reason = self._ovs.no_answer()
            return NotReady(f"{reason} (the package openvswitch-switch, or --ovs-db)")
        try:
            return sorted(self._ovs.look(_SWITCH_SECONDS).bridges or {})
        except VmlinkError as e:
            return e


def _mode(name: str, kind: str, node: Node, bridges: _Bridges) -> None:
    """Raise the reason why a mode works on none of the bridges or NICs: that of the last one."""
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
        raise NotReady("Open vSwitch has no bridge; make one with ovs-vsctl add-br")
    with Netlink() as netlink:
        nics = [MasterUplink(x.name) for x in netlink.links() if x.up and x.name != "lo"]
    if nics:
        return [*nics]
    raise NotReady("no interface of this node is up that could be a master; set one up")


def _daemon(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.connect(str(path))
        except OSError as e:
            raise NotReady(
                f"nobody listens at {path} ({e.strerror}); run systemctl start vmlinkd.socket"
            ) from e


def _vhost_net() -> None:
    if reason := descriptors.vhost_refusal():
        raise NotReady(
            f"{descriptors.VHOST_NET} cannot be opened ({reason}), so QEMU itself moves each "
            "packet, which is slower; load the kernel module vhost_net"
        )


def _print(findings: Sequence[Finding]) -> None:
    for line in columns([(f.name, f.uplink, "ok" if f.ok else "no", f.reason) for f in findings]):
        print(line)
