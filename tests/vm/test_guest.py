"""The micro-VM itself, on a tap in a namespace of its own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bench.testbed.guest import (
    Guest,
    GuestError,
    _acceleration,
    accelerator,
    accelerator_reason,
)
from bench.testbed.node import Lab
from bench.testbed.probes import iperf_tcp, iperf_udp, ping

MAC = "02:00:5e:10:00:02"
MTU = 1400


@pytest.fixture
def netns() -> Iterator[str]:
    lab = Lab()
    path = str(lab.namespace("guest"))
    try:
        for command in (
            "tuntap add tap0 mode tap vnet_hdr",
            f"link set tap0 mtu {MTU} up",
            "addr add 10.0.0.1/24 dev tap0",
            "addr add fd00::1/64 dev tap0 nodad",
        ):
            subprocess.run(["nsenter", f"--net={path}", "ip", *command.split()], check=True)
        yield path
    finally:
        lab.close()


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_guest_talks_and_leaves_nothing(netns: str) -> None:
    nic = [
        *("-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no"),
        *("-device", f"virtio-net-pci,netdev=n0,mac={MAC},host_mtu={MTU}"),
    ]
    with Guest.boot(netns=netns, extra=nic) as guest:
        assert [(found.mac, found.mtu) for found in guest.nics()] == [(MAC, MTU)]
        guest.configure("eth0", ["10.0.0.2/24", "fd00::2/64"], ["10.0.0.1", "fd00::1"])
        assert guest.nics()[0].operstate == "up"
        routes = guest.run("ip route; ip -6 route")
        assert "default via 10.0.0.1" in routes
        assert "default via fd00::1" in routes
        commands(guest)
        traffic(guest, netns)
    assert gone(guest.pid)
    with pytest.raises(GuestError, match="closed"):
        guest.run("true")


def commands(guest: Guest) -> None:
    text = 'a "b"\\n $c\t%s \\\\ é'
    assert guest.run(f"cat <<'END'\n{text}\nEND") == text + "\n"
    assert len(guest.run("head -c 100000 /dev/zero")) == 100000
    with pytest.raises(GuestError) as failed:
        guest.run("echo out; echo err >&2; exit 3")
    assert (failed.value.status, failed.value.output) == (3, "out\nerr\n")
    with pytest.raises(GuestError, match="more than 1 s"):
        guest.run("sleep 30", timeout=1)
    group = guest.spawn("sleep 1000; true")
    assert guest.run(f"kill -0 -{group}") == ""
    guest.kill(group)
    guest.run(f"while kill -0 -{group} 2>/dev/null; do usleep 50000; done", timeout=5)


def traffic(guest: Guest, netns: str) -> None:
    for address, headers in (("10.0.0.2", 28), ("fd00::2", 48)):
        assert 0 < ping(netns, address, count=5, size=MTU - headers, dont_fragment=True) < 1000
        with pytest.raises(GuestError, match=r"(?i)too long"):
            ping(netns, address, count=1, size=MTU - headers + 1, dont_fragment=True)
    assert iperf_tcp(guest, "10.0.0.2", netns, seconds=1) > 0.01
    assert iperf_tcp(guest, "fd00::2", netns, seconds=1, reverse=True, parallel=2) > 0.01
    gbps, lost = iperf_udp(guest, "10.0.0.2", netns, 1, rate="8M", length=1000)
    assert 0 < gbps <= 0.009
    assert 0 <= lost <= 100


def test_boot_fails_with_what_was_said() -> None:
    with pytest.raises(GuestError, match="no-such-device"):
        Guest.boot(extra=["-device", "no-such-device"])
    with pytest.raises(GuestError, match="status 7"):
        Guest.boot(prefix=["sh", "-c", "exit 7"])


def test_guest_dies_with_its_owner(tmp_path: Path) -> None:
    script = (
        "import os; from bench.testbed.guest import Guest\n"
        "print(Guest.boot().pid, flush=True); os.kill(os.getpid(), 9)"
    )
    owner = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        check=False,
    )
    assert owner.returncode == -signal.SIGKILL
    with suppress(ProcessLookupError):
        fd = os.pidfd_open(int(owner.stdout))
        try:
            # A pidfd is readable once its process has ended, reaped by init or not.
            assert select.select([fd], [], [], 5)[0]
            with suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, fd, os.WEXITED)
        finally:
            os.close(fd)


def test_accelerator_is_found_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = accelerator(), accelerator_reason()
    _acceleration.cache_clear()
    monkeypatch.setattr("bench.testbed.guest._probe", lambda: pytest.fail("probed again"))
    assert (accelerator(), accelerator_reason()) == first
