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
import signal
import subprocess
from pathlib import Path

from bench.testbed import hugepages
from bench.testbed.daemons import SECONDS, Daemons, end
from cni.kernel.netns import Namespace

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


def missing(dpdk: bool = False) -> str:
    """Why a Switch cannot run here, in words; empty when it can."""
    for package, pattern in (_PACKAGES | (_DPDK_PACKAGES if dpdk else {})).items():
        if not any(Path("/").glob(pattern[1:])):
            return f"Debian's package {package} is not installed"
    return hugepages.missing(DPDK_BYTES) if dpdk else ""


class Switch(Daemons):
    """ovsdb-server and ovs-vswitchd, `ovsdb` and `vswitchd`; `db` is the database's address, `log`
    ovs-vswitchd's.
    """

    def __init__(self, namespace: Namespace, dpdk: bool = False) -> None:
        super().__init__(namespace, "vmlink-ovs-")
        self.db = f"unix:{self.dir}/db.sock"
        self.log = self.dir / "vswitchd.log"
        self.vswitchd: subprocess.Popen[bytes] | None = None
        self.ovsdb: subprocess.Popen[bytes] | None = None
        self._dpdk = dpdk
        self._taken.callback(self.kill_ovsdb)
        self._taken.callback(self.kill_vswitchd)
        self._taken.callback(self._clean_up)

    def start(self) -> None:
        """Start both on an empty database. Raises SwitchError, OSError."""
        self.run("ovsdb-tool", "create", f"{self.dir}/conf.db", _SCHEMA)
        self.start_ovsdb()
        self.vsctl("--no-wait", "init")
        if self._dpdk:
            self._taken.enter_context(hugepages.taken(DPDK_BYTES))
            self.vsctl("--no-wait", "set", "Open_vSwitch", ".", *_dpdk_settings())
        self.start_vswitchd()

    def start_ovsdb(self) -> None:
        """Start ovsdb-server on the database that is there, and wait until it serves.

        A running ovs-vswitchd tries again to connect to it after 1 s.
        """
        self.ovsdb = self.serve("ovsdb", "conf.db", self.db)

    def start_vswitchd(self) -> None:
        """Start ovs-vswitchd and wait until the ports of the database are there."""
        program = _VSWITCHD_DPDK if self._dpdk else _VSWITCHD
        self.vswitchd = self.spawn("vswitchd", program, self.db, self.control("vswitchd"))
        # cur_cfg may be its predecessor's: ovs-vsctl waits only for a change that it made.
        change = f"external_ids:vswitchd={self.vswitchd.pid}"
        argv = self._vsctl("set", "Open_vSwitch", ".", change)
        self.await_client(argv, self.vswitchd, "vswitchd")

    def kill_vswitchd(self, number: int = signal.SIGKILL) -> None:
        """End ovs-vswitchd by its own id; fine when there is none."""
        end(self.vswitchd, number)
        self.vswitchd = None

    def kill_ovsdb(self, number: int = signal.SIGKILL) -> None:
        """End ovsdb-server by its own id; fine when there is none."""
        end(self.ovsdb, number)
        self.ovsdb = None

    def add_bridge(self, name: str, **columns: str) -> None:
        """Add a bridge of the userspace datapath, with these columns of its row."""
        given = [f"{column}={value}" for column, value in columns.items()]
        self.vsctl("add-br", name, "--", "set", "Bridge", name, "datapath_type=netdev", *given)

    def vsctl(self, *arguments: str) -> str:
        """What ovs-vsctl prints, after ovs-vswitchd has followed (not with --no-wait)."""
        return self.run(*self._vsctl(*arguments))

    def ofctl(self, *arguments: str) -> str:
        return self.run("ovs-ofctl", f"--timeout={SECONDS}", *arguments)

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
        answers = json.loads(self.run("ovsdb-client", "transact", self.db, request))
        found = set()
        for (table, column), answer in zip(columns.items(), answers, strict=True):
            for row in answer["rows"]:
                value = row[column]
                found.add(f"{table} {value if column == 'name' else value[1]}")
        return frozenset(found)

    def _vsctl(self, *arguments: str) -> list[str]:
        return ["ovs-vsctl", f"--db={self.db}", f"--timeout={SECONDS}", *arguments]

    def _clean_up(self) -> None:
        # Its taps are persistent, so that they outlive a crash.
        if self.vswitchd and self.vswitchd.poll() is None:
            self.appctl("vswitchd", "exit", "--cleanup")
            self.vswitchd.wait(SECONDS)


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
