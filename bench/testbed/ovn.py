"""A private OVN for demo, tests and benchmarks: nodes joined by Geneve tunnels.

    with Ovn() as ovn:
        ovn.add_switch("ls0", {"web.shop": "02:00:00:00:00:01 10.9.0.2"})
        ovn.nodes[0].start()

Each node has its own network namespace, Open vSwitch and ovn-controller; a veth between the nodes
is the underlay. The tunnels end at the address of a bridge that has the underlay's NIC, as OVS's
userspace datapath needs it (Open vSwitch documentation, "Userspace Tunneling"). The databases
listen on unix sockets. Debian packages: ovn-central, ovn-host.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.testbed import switch
from bench.testbed.daemons import SECONDS, Daemons, end
from bench.testbed.node import Node
from bench.testbed.switch import Datapath

BRIDGE = "br-int"
MTU = 1400  # of the guests: Geneve's headers and OVN's option take 58 of the underlay's 1500 bytes

_SCHEMAS = "/usr/share/ovn"
_PACKAGES = {"ovn-central": "/usr/bin/ovn-northd", "ovn-host": "/usr/bin/ovn-controller"}
_UNDERLAY = "172.31.0.{}"


def missing(dpdk: bool = False, datapath: Datapath = "netdev") -> str:
    """Why an Ovn cannot run here; empty when it can."""
    for package, program in _PACKAGES.items():
        if not Path(program).exists():
            return f"Debian's package {package} is not installed"
    return switch.missing(dpdk, datapath)


class Ovn(Daemons):
    """The northbound and the southbound database, ovn-northd, and the nodes.

    `switches` are the nodes' switches as `Node` takes them: two at most, since one veth joins them.
    `datapath` is the type of all bridges, by default the best for each node.
    """

    def __init__(
        self, switches: Sequence[str] = ("ovs", "ovs"), datapath: Datapath | None = None
    ) -> None:
        self.nodes = [Node(kind, datapath) for kind in switches]
        super().__init__(self.nodes[0].namespace, "vmlink-ovn-")
        self.nb, self.sb = f"unix:{self.dir}/nb.sock", f"unix:{self.dir}/sb.sock"
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self.controllers: dict[int, subprocess.Popen[bytes]] = {}
        for node in self.nodes:
            self._cleanup.callback(node.close)
        self._cleanup.callback(self._end_all)

    def start(self) -> None:
        """Start all, and wait until every chassis is registered. Raises SwitchError, OSError."""
        for name in ("nb", "sb"):
            self.run(
                "ovsdb-tool", "create", f"{self.dir}/{name}.db", f"{_SCHEMAS}/ovn-{name}.ovsschema"
            )
            self.start_server(name)
        databases = (f"--ovnnb-db={self.nb}", f"--ovnsb-db={self.sb}")
        self._servers["northd"] = self.spawn("northd", "ovn-northd", *databases)
        self.nbctl("init")
        for node in self.nodes:
            assert node.switch
            node.switch.start()
        self._make_underlay()
        for number, node in enumerate(self.nodes):
            self._configure(number, node)
            self.start_controller(number)

    def start_server(self, name: str) -> None:
        """Start ovsdb-server on the existing database `nb` or `sb`. Raises SwitchError."""
        self._servers[name] = self.serve(name, f"{name}.db", f"unix:{self.dir}/{name}.sock")

    def kill_server(self, name: str) -> None:
        """End the server of `nb` or `sb`; nothing happens when it does not run."""
        end(self._servers.pop(name, None))

    def start_controller(self, number: int) -> None:
        """Start a node's ovn-controller and wait until its chassis is up to date.

        Raises SwitchError.
        """
        node = self.nodes[number].switch
        assert node
        daemon = node.spawn("ovn-controller", "ovn-controller", node.db)
        self.controllers[number] = daemon
        wait = self._sbctl("wait-until", "Chassis", self.chassis(number))
        node.await_client(wait, daemon, "ovn-controller")
        if len(self.controllers) == len(self.nodes):
            self.nbctl("--wait=hv", "sync")

    def kill_controller(self, number: int) -> None:
        """End a node's ovn-controller as a crash does: its flows and its chassis stay."""
        end(self.controllers.pop(number, None))

    def chassis(self, number: int) -> str:
        """The name of a node's chassis."""
        return f"node{number + 1}"

    def add_switch(self, name: str, ports: Mapping[str, str]) -> None:
        """Add a logical switch with ports, each with its `addresses` as ovn-nb(5) has them.

        Raises SwitchError.
        """
        argv = ["--wait=sb", "ls-add", name]
        for port, addresses in ports.items():
            argv += ["--", "lsp-add", name, port, "--", "lsp-set-addresses", port, addresses]
        self.nbctl(*argv)

    def claimed(self, port: str) -> str:
        """The chassis that has claimed a logical port, by the southbound database; or ""."""
        query = ("--bare", "--columns=chassis", "find", "Port_Binding", f"logical_port={port}")
        if not (row := self.sbctl(*query).strip()):
            return ""
        return self.sbctl("--bare", "get", "Chassis", row, "name").strip()

    def nbctl(self, *arguments: str) -> str:
        """Run ovn-nbctl; returns stdout. Raises SwitchError."""
        return self.run("ovn-nbctl", f"--db={self.nb}", f"--timeout={SECONDS}", *arguments)

    def sbctl(self, *arguments: str) -> str:
        """Run ovn-sbctl; returns stdout. Raises SwitchError."""
        return self.run(*self._sbctl(*arguments))

    def _sbctl(self, *arguments: str) -> list[str]:
        return ["ovn-sbctl", f"--db={self.sb}", f"--timeout={SECONDS}", *arguments]

    def _make_underlay(self) -> None:
        """Join the nodes by a veth, each end in a bridge that has the tunnel's address."""
        first, *others = self.nodes
        for other in others:
            peer = ["peer", "name", "nic0", "netns", str(other.path)]
            first.run(["ip", "link", "add", "nic0", "type", "veth", *peer])
        for number, node in enumerate(self.nodes):
            assert node.switch
            node.switch.add_bridge("br-phys")
            if others:
                node.run("ip link set nic0 up".split())
                node.switch.vsctl("add-port", "br-phys", "nic0")
            address = _UNDERLAY.format(number + 1) + "/24"
            node.run(["ip", "address", "add", address, "dev", "br-phys"])
            node.run("ip link set br-phys up".split())

    def _configure(self, number: int, node: Node) -> None:
        """Tell ovn-controller who it is (ovn-controller(8), section "Configuration")."""
        assert node.switch
        keys = {
            "system-id": self.chassis(number),
            "ovn-remote": self.sb,
            "ovn-encap-type": "geneve",
            "ovn-encap-ip": _UNDERLAY.format(number + 1),
            "ovn-bridge-datapath-type": node.switch.datapath,
        }
        settings = [f'external_ids:{key}="{value}"' for key, value in keys.items()]
        node.switch.vsctl("set", "Open_vSwitch", ".", *settings)

    def _end_all(self) -> None:
        for daemon in (*self.controllers.values(), *self._servers.values()):
            end(daemon)
