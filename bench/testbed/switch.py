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
from typing import Literal

from bench.testbed import hugepages
from bench.testbed.daemons import SECONDS, Daemons, end
from cni.kernel.netns import Namespace

Datapath = Literal["netdev", "system"]  # datapath_type of a bridge: in user space, in the kernel

DPDK_BYTES = 768 << 20  # a port of MTU 1500 takes 60 MiB while a guest is connected
PMD_SLEEP_US = 500  # an idle poll mode driver then takes 3 % of its CPU instead of all of it

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


def missing(dpdk: bool = False, datapath: Datapath = "netdev") -> str:
    """Why a Switch cannot run here; empty when it can."""
    for package, pattern in (_PACKAGES | (_DPDK_PACKAGES if dpdk else {})).items():
        if not any(Path("/").glob(pattern[1:])):
            return f"Debian's package {package} is not installed"
    if datapath == "system" and not _has_kernel_datapath():
        return "the kernel module openvswitch is missing: the datapath `system` needs it"
    return hugepages.missing(DPDK_BYTES) if dpdk else ""


def _has_kernel_datapath() -> bool:
    """Whether the kernel has, or loads on this request, the netlink family `ovs_datapath`."""
    asked = subprocess.run(["ovs-dpctl", "dump-dps"], capture_output=True, check=False)
    return asked.returncode == 0


def best_datapath(dpdk: bool = False) -> Datapath:
    """The kernel's datapath where there is one, as most users have it; DPDK has its own."""
    return "netdev" if dpdk or missing(datapath="system") else "system"


class Switch(Daemons):
    """ovsdb-server and ovs-vswitchd.

    `datapath` is the type of the bridges, by default `best_datapath`, `db` the address of the
    database, `log` the log of ovs-vswitchd, `ovsdb` and `vswitchd` the processes while they run.
    """

    def __init__(
        self, namespace: Namespace, dpdk: bool = False, datapath: Datapath | None = None
    ) -> None:
        super().__init__(namespace, "vmlink-ovs-")
        self.datapath = datapath or best_datapath(dpdk)
        self.db = f"unix:{self.dir}/db.sock"
        self.log = self.dir / "vswitchd.log"
        self.vswitchd: subprocess.Popen[bytes] | None = None
        self.ovsdb: subprocess.Popen[bytes] | None = None
        self._dpdk = dpdk
        self._cleanup.callback(self.kill_ovsdb)
        self._cleanup.callback(self.kill_vswitchd)
        self._cleanup.callback(self._remove_ports)

    def start(self) -> None:
        """Start both daemons on an empty database. Raises SwitchError, OSError."""
        self.run("ovsdb-tool", "create", f"{self.dir}/conf.db", _SCHEMA)
        self.start_ovsdb()
        self.vsctl("--no-wait", "init")
        if self._dpdk:
            self._cleanup.enter_context(hugepages.allowed(DPDK_BYTES))
            self.vsctl("--no-wait", "set", "Open_vSwitch", ".", *_dpdk_settings())
        self.start_vswitchd()

    def start_ovsdb(self) -> None:
        """Start ovsdb-server on the existing database and wait until it listens.

        A running ovs-vswitchd connects to it again within 1 s. Raises SwitchError.
        """
        self.ovsdb = self.serve("ovsdb", "conf.db", self.db)

    def start_vswitchd(self) -> None:
        """Start ovs-vswitchd and wait until it has made the ports of the database.

        Raises SwitchError.
        """
        program = _VSWITCHD_DPDK if self._dpdk else _VSWITCHD
        self.vswitchd = self.spawn("vswitchd", program, self.db, self.control("vswitchd"))
        # cur_cfg may be its predecessor's: ovs-vsctl waits only for a change that it made itself.
        change = f"external_ids:vswitchd={self.vswitchd.pid}"
        argv = self._vsctl("set", "Open_vSwitch", ".", change)
        self.await_client(argv, self.vswitchd, "vswitchd")

    def kill_vswitchd(self, number: int = signal.SIGKILL) -> None:
        """End ovs-vswitchd, by its process id; nothing happens when it does not run."""
        end(self.vswitchd, number)
        self.vswitchd = None

    def kill_ovsdb(self, number: int = signal.SIGKILL) -> None:
        """End ovsdb-server, by its process id; nothing happens when it does not run."""
        end(self.ovsdb, number)
        self.ovsdb = None

    def add_bridge(self, name: str, **columns: str) -> None:
        """Add a bridge of this switch's datapath, with these columns of its row.

        Raises SwitchError.
        """
        settings = [f"{column}={value}" for column, value in columns.items()]
        datapath = f"datapath_type={self.datapath}"
        self.vsctl("add-br", name, "--", "set", "Bridge", name, datapath, *settings)

    def vsctl(self, *arguments: str) -> str:
        """Run ovs-vsctl, which waits for ovs-vswitchd (not with --no-wait); returns stdout.

        Raises SwitchError.
        """
        return self.run(*self._vsctl(*arguments))

    def ofctl(self, *arguments: str) -> str:
        """Run ovs-ofctl; returns stdout. Raises SwitchError."""
        return self.run("ovs-ofctl", f"--timeout={SECONDS}", *arguments)

    @property
    def has_dpdk(self) -> bool:
        """Whether ovs-vswitchd has initialised DPDK."""
        return self.vsctl("get", "Open_vSwitch", ".", "dpdk_initialized").strip() == "true"

    def rows(self) -> frozenset[str]:
        """Each port, interface, QoS and queue of the database, as TABLE NAME or TABLE UUID."""
        columns = {"Port": "name", "Interface": "name", "QoS": "_uuid", "Queue": "_uuid"}
        selects = [
            {"op": "select", "table": table, "where": [], "columns": [column]}
            for table, column in columns.items()
        ]
        request = json.dumps(["Open_vSwitch", *selects])
        answers = json.loads(self.run("ovsdb-client", "transact", self.db, request))
        rows = set()
        for (table, column), answer in zip(columns.items(), answers, strict=True):
            for row in answer["rows"]:
                value = row[column]
                rows.add(f"{table} {value if column == 'name' else value[1]}")
        return frozenset(rows)

    def _vsctl(self, *arguments: str) -> list[str]:
        return ["ovs-vsctl", f"--db={self.db}", f"--timeout={SECONDS}", *arguments]

    def _remove_ports(self) -> None:
        """Make ovs-vswitchd remove its ports, since persistent taps would outlive it."""
        if self.vswitchd and self.vswitchd.poll() is None:
            self.appctl("vswitchd", "exit", "--cleanup")
            self.vswitchd.wait(SECONDS)


def _dpdk_settings() -> list[str]:
    """Settings for a small machine: one memory pool for all ports would take 800 MB."""
    cpu = max(os.sched_getaffinity(0))
    settings = {
        "dpdk-init": "true",
        "dpdk-extra": '"--no-pci"',  # leave the machine's own NICs alone
        "per-port-memory": "true",
        "pmd-cpu-mask": f"{1 << cpu:x}",
        "pmd-maxsleep": str(PMD_SLEEP_US),
    }
    return [f"other_config:{key}={value}" for key, value in settings.items()]
