"""A guest on a layer-2 network, without IPAM, gets its address from a DHCP server."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench.testbed import probes
from bench.testbed.guest import Guest
from bench.testbed.image import BUSYBOX
from bench.testbed.node import Node

SERVER = "10.6.0.1"
# What udhcpc executes with its lease in the environment (busybox, udhcpc --help).
SCRIPT = """\
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
ip route add default via "$router"
"""


@pytest.fixture
def server(node: Node, tmp_path: Path) -> Iterator[Path]:
    """The namespace of a DHCP server, a port of the node's bridge br0."""
    outside = node.pod()
    conf = tmp_path / "udhcpd.conf"
    (tmp_path / "leases").touch()
    conf.write_text(
        f"interface wire\nstart 10.6.0.10\nend 10.6.0.50\nlease_file {tmp_path}/leases\n"
        f"pidfile {tmp_path}/pid\noption subnet 255.255.255.0\noption router {SERVER}\n"
    )
    with ExitStack() as stack:
        stack.callback(node.lab.drop, outside)
        node.run(f"ip link add port type veth peer name wire netns {outside}".split())
        stack.callback(node.run, "ip link del port".split())
        node.run("ip link set port master br0 up".split())
        node.run(f"ip address add {SERVER}/24 dev wire".split(), outside)
        node.run("ip link set wire up".split(), outside)
        enter = ["nsenter", f"--net={outside}", "setpriv", "--pdeathsig", "KILL"]
        process = subprocess.Popen(
            [*enter, str(BUSYBOX), "udhcpd", "-f", str(conf)],
            stderr=subprocess.DEVNULL,
        )
        stack.callback(process.wait, 10)
        stack.callback(process.kill)
        yield outside


@pytest.mark.parametrize("mode", ["tc", "tap"])
def test_the_guest_asks_itself(node: Node, pod: Path, server: Path, mode: str) -> None:
    conf: dict[str, Any] = {"cniVersion": "1.0.0", "name": "layer2", "type": "vmlink"}
    conf |= {"mode": mode, "linux": {"bridge": "br0"}}
    result = node.call("ADD", conf, "vm", pod).expect()
    try:
        assert result["ips"] == []
        (device,) = json.loads(node.run(node.ctl("device", "vm")).stdout)
        assert device["addresses"] == []
        with Guest.boot(prefix=node.ctl("exec", "vm", "--"), netns=str(node.path)) as guest:
            guest.run(f"cat >/tmp/script <<'END'\n{SCRIPT}END\nchmod +x /tmp/script")
            guest.run("ip link set eth0 up; udhcpc -i eth0 -s /tmp/script -q -n -t 10 -T 1", 20)
            (address,) = guest.run("ip -o -4 addr show dev eth0").split()[3:4]
            assert address.startswith("10.6.0.")
            guest.run(f"ping -c 1 -W 5 {SERVER}")
            assert probes.ping(str(server), address.partition("/")[0], 3) > 0
    finally:
        node.call("DEL", conf, "vm", pod).expect()
