"""Debian 12's cloud-init renders the network-config, by each way of Debian to set up a NIC."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cni.spec.types import Route
from cni.vmm.device import Device
from cni.vmm.formats import FORMATS

DEVICE = Device(
    "vlt1",
    "tap",
    "02:00:00:00:00:01",
    1400,
    1,
    ifname="eth0",
    addresses=("10.0.0.2/24", "fd00::2/64"),
    routes=(
        Route("0.0.0.0/0", "10.0.0.1"),
        Route("::/0", "fd00::1"),
        Route("fd01::/48", "fd00::9"),
    ),
    nameservers=("10.0.0.53",),
    search=("example.org",),
)
# The mocks are for what cloud-init's other modules import; the renderers do not use them.
RENDER = """
import json, sys, yaml
from unittest.mock import MagicMock
sys.path.insert(0, sys.argv[1])
sys.modules.update({m: MagicMock() for m in ("configobj", "jsonschema", "requests", "jinja2")})
from cloudinit.net import eni, netplan, network_state, networkd
state = network_state.parse_net_config_data(yaml.safe_load(sys.stdin))
print(json.dumps({
    "ifupdown": eni.Renderer({})._render_interfaces(state),
    "networkd": networkd.Renderer({})._render_content(state)["eth0"],
    "netplan": yaml.safe_load(netplan.Renderer({})._render_content(state)),
}))
"""


@pytest.fixture(scope="module")
def cloud_init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's package, downloaded and unpacked but not installed."""
    directory = tmp_path_factory.mktemp("cloud-init")
    fetched = subprocess.run(
        ["apt-get", "download", "cloud-init"], cwd=directory, capture_output=True, text=True
    )
    if fetched.returncode:
        pytest.skip(f"Debian's package cloud-init cannot be downloaded: {fetched.stderr}")
    (package,) = directory.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, directory], check=True)
    return directory / "usr/lib/python3/dist-packages"


def test_the_guest_has_both_default_routes_whatever_renders_them(cloud_init: Path) -> None:
    config = FORMATS["cloud-init"]([DEVICE], True)
    done = subprocess.run(
        [sys.executable, "-c", RENDER, cloud_init], input=config, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    lines = [line.strip() for line in told["ifupdown"].splitlines()]
    assert "gateway fd00::1" in lines
    assert any("route add default gw 10.0.0.1" in line for line in lines)
    assert any("route add -A inet6 fd01::/48 gw fd00::9" in line for line in lines)
    assert "[Route]\nGateway=fd00::1" in told["networkd"]
    assert "::/64" not in told["ifupdown"] + told["networkd"].replace("fd00::2/64", "")
    netplan = told["netplan"]["network"]["ethernets"]["eth0"]
    assert netplan["gateway6"] == "fd00::1"
