"""A private Open vSwitch for demo, tests and benchmarks, in the network namespace of a node.

    with Node() as node, Switch(node.namespace) as switch:
        switch.add_bridge("br0")
        switch.vsctl("add-port", "br0", "veth0")

Debian packages: openvswitch-switch; with DPDK also openvswitch-switch-dpdk, librte-mempool-ring23,
librte-bus-vdev23, librte-net-virtio23. Settings: ovs-vswitchd.conf.db(5).
"""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Self

from bench import hugepages
from cni.netns import Namespace

SECONDS = 20  # for a daemon to come up, and for a command
DPDK_BYTES = 768 << 20  # a port of MTU 1500 takes 60 MiB while a guest is connected
PMD_SLEEP_US = 500  # an idle poller then takes 3 % of its CPU instead of all

_SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
_VSWITCHD = "/usr/lib/openvswitch-switch/ovs-vswitchd"
_VSWITCHD_DPDK = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
_PACKAGES = {"openvswitch-switch": _VSWITCHD}
_DPDK_PACKAGES = {
    "openvswitch-switch-dpdk": _VSWITCHD_DPDK,
    "librte-mempool-ring23": "/usr/lib/*/dpdk/pmds-*/librte_mempool_ring.so.*",
    "librte-bus-vdev23": "/usr/lib/*/dpdk/pmds-*/librte_bus_vdev.so.*",
    "librte-net-virtio23": "/usr/lib/*/dpdk/pmds-*/librte_net_virtio.so.*",
}


class SwitchError(Exception):
    """A daemon did not come up, or a command failed; says what it said."""


def missing(dpdk: bool = False) -> str:
    """Why a Switch cannot run here, in words; empty when it can."""
    for package, pattern in (_PACKAGES | (_DPDK_PACKAGES if dpdk else {})).items():
        if not any(Path("/").glob(pattern[1:])):
            return f"Debian's package {package} is not installed"
    return hugepages.missing(DPDK_BYTES) if dpdk else ""


class Switch:
    """ovsdb-server and ovs-vswitchd with all their files in a directory of their own.

    `db` is the database's address, `log` is ovs-vswitchd's. The daemons, `vswitchd` and `ovsdb`,
    die with the THREAD that starts them.
    """

    def __init__(self, namespace: Namespace, dpdk: bool = False) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="vmlink-ovs-"))
        self.db = f"unix:{self.dir}/db.sock"
        self.log = self.dir / "vswitchd.log"
        self.vswitchd: subprocess.Popen[bytes] | None = None
        self.ovsdb: subprocess.Popen[bytes] | None = None
        self._namespace = namespace
        self._dpdk = dpdk
        # DPDK takes RUNTIME_DIRECTORY, as systemd sets it, instead of /var/run.
        places = ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR", "RUNTIME_DIRECTORY")
        self._env = {**os.environ, **dict.fromkeys(places, str(self.dir))}
        self._taken = ExitStack()
        self._taken.callback(shutil.rmtree, self.dir)
        self._taken.callback(self.kill_ovsdb)
        self._taken.callback(self.kill_vswitchd)
        self._taken.callback(self._clean_up)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start both daemons on an empty database. Raises SwitchError, OSError."""
        self._run("ovsdb-tool", "create", f"{self.dir}/conf.db", _SCHEMA)
        self.start_ovsdb()
        self.vsctl("--no-wait", "init")
        if self._dpdk:
            self._taken.enter_context(hugepages.taken(DPDK_BYTES))
            self.vsctl("--no-wait", "set", "Open_vSwitch", ".", *_dpdk_settings())
        self.start_vswitchd()

    def close(self) -> None:
        """End both; nothing is left of them afterwards. May be called again.

        Only what an ovs-vswitchd that is dead by then made, its links, goes with the namespace.
        """
        self._taken.close()

    def start_ovsdb(self) -> None:
        """Start ovsdb-server on the database that is there, and wait until it serves.

        A running ovs-vswitchd tries again to connect to it after 1 s.
        """
        ready = self.dir / "ready.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(ready))
            listener.listen()
            # It connects to one when it listens on the other.
            remotes = (f"--remote=punix:{self.dir}/db.sock", f"--remote=unix:{ready}")
            self.ovsdb = self._spawn("ovsdb", "ovsdb-server", *remotes, f"{self.dir}/conf.db")
            self._await(listener, self.ovsdb, "ovsdb")
        ready.unlink()
        remove = ("ovsdb-server/remove-remote", f"unix:{ready}")
        self._run("ovs-appctl", "-t", f"{self.dir}/ovsdb.ctl", *remove)

    def start_vswitchd(self) -> None:
        """Start ovs-vswitchd and wait until the ports of the database are there."""
        program = _VSWITCHD_DPDK if self._dpdk else _VSWITCHD
        self.vswitchd = self._spawn("vswitchd", program, self.db)
        # cur_cfg may be its predecessor's: ovs-vsctl waits only for a change that it made.
        change = f"external_ids:vswitchd={self.vswitchd.pid}"
        argv = self._vsctl("set", "Open_vSwitch", ".", change)
        with subprocess.Popen(argv, env=self._env, stderr=subprocess.PIPE, text=True) as client:
            assert client.stderr
            try:
                self._await(client.stderr, self.vswitchd, "vswitchd")
                if client.wait():
                    raise SwitchError(f"{shlex.join(argv)}: {client.stderr.read()}{self.tail()}")
            finally:
                client.kill()

    def kill_vswitchd(self, number: int = signal.SIGKILL) -> None:
        """End ovs-vswitchd by its own id; fine when there is none."""
        _end(self.vswitchd, number)
        self.vswitchd = None

    def kill_ovsdb(self, number: int = signal.SIGKILL) -> None:
        """End ovsdb-server by its own id; fine when there is none."""
        _end(self.ovsdb, number)
        self.ovsdb = None

    def add_bridge(self, name: str, **columns: str) -> None:
        """Add a bridge of the userspace datapath, with these columns of its row."""
        given = [f"{column}={value}" for column, value in columns.items()]
        self.vsctl("add-br", name, "--", "set", "Bridge", name, "datapath_type=netdev", *given)

    def vsctl(self, *arguments: str) -> str:
        """What ovs-vsctl prints, after ovs-vswitchd has followed (not with --no-wait)."""
        return self._run(*self._vsctl(*arguments))

    def ofctl(self, *arguments: str) -> str:
        return self._run("ovs-ofctl", f"--timeout={SECONDS}", *arguments)

    @property
    def has_dpdk(self) -> bool:
        return self.vsctl("get", "Open_vSwitch", ".", "dpdk_initialized").strip() == "true"

    def rows(self) -> frozenset[str]:
        """Every port, interface, QoS and queue in the database, in words."""
        columns = {"Port": "name", "Interface": "name", "QoS": "_uuid", "Queue": "_uuid"}
        selects = [
            {"op": "select", "table": table, "where": [], "columns": [column]}
            for table, column in columns.items()
        ]
        request = json.dumps(["Open_vSwitch", *selects])
        answers = json.loads(self._run("ovsdb-client", "transact", self.db, request))
        found = set()
        for (table, column), answer in zip(columns.items(), answers, strict=True):
            for row in answer["rows"]:
                value = row[column]
                found.add(f"{table} {value if column == 'name' else value[1]}")
        return frozenset(found)

    def tail(self, name: str = "vswitchd", lines: int = 20) -> str:
        """The end of a daemon's log."""
        log = self.dir / f"{name}.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _vsctl(self, *arguments: str) -> list[str]:
        return ["ovs-vsctl", f"--db={self.db}", f"--timeout={SECONDS}", *arguments]

    def _clean_up(self) -> None:
        # Its taps are persistent, so that they outlive a crash.
        if self.vswitchd and self.vswitchd.poll() is None:
            self._run("ovs-appctl", "-t", f"{self.dir}/vswitchd.ctl", "exit", "--cleanup")
            self.vswitchd.wait(SECONDS)

    def _spawn(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        argv = ["setpriv", "--pdeathsig", "KILL", *command]
        argv += [f"--unixctl={self.dir}/{name}.ctl", "--verbose=syslog:off"]
        with (self.dir / f"{name}.log").open("ab") as log, self._namespace.entered():
            # A session of its own: Ctrl-C is for us, and we end them in their order.
            return subprocess.Popen(
                argv, stdout=log, stderr=log, env=self._env, cwd=self.dir, start_new_session=True
            )

    def _await(
        self, event: socket.socket | IO[str], daemon: subprocess.Popen[bytes], name: str
    ) -> None:
        """Until `event` can be read, while the daemon lives."""
        ended = os.pidfd_open(daemon.pid)
        try:
            poll = select.poll()
            poll.register(event, select.POLLIN)
            poll.register(ended, select.POLLIN)
            found = [fd for fd, _ in poll.poll(SECONDS * 1000)]
        finally:
            os.close(ended)
        if not found or ended in found:
            how = "ended" if found else f"is not ready after {SECONDS} s"
            raise SwitchError(f"{name} {how}:\n{self.tail(name)}")

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self._env, capture_output=True, text=True, timeout=2 * SECONDS, check=False
        )
        if done.returncode:
            raise SwitchError(f"{shlex.join(command)}: {done.stderr}{self.tail()}")
        return done.stdout


def _end(daemon: subprocess.Popen[bytes] | None, number: int) -> None:
    if daemon:
        daemon.send_signal(number)
        daemon.wait(SECONDS)


def _dpdk_settings() -> list[str]:
    """For a small machine: a pool for all ports together would be of 800 MB."""
    cpu = max(os.sched_getaffinity(0))
    settings = {
        "dpdk-init": "true",
        "dpdk-extra": '"--no-pci"',  # the machine's own NICs are none of ours
        "per-port-memory": "true",
        "pmd-cpu-mask": f"{1 << cpu:x}",
        "pmd-maxsleep": str(PMD_SLEEP_US),
    }
    return [f"other_config:{key}={value}" for key, value in settings.items()]
