"""The kernel lab boots Debian's kernel, and what happened inside is what it says."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.testbed.kernel_lab import kernels
from bench.testbed.slowness import SLOWNESS

pytestmark = pytest.mark.skipif(SLOWNESS > 1, reason="this is the kernel lab: it holds no other")
ROOT = Path(__file__).parents[2]


def lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "bench.testbed.kernel_lab", *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_command_under_another_kernel() -> None:
    script = "uname -r; pwd; ls /sys/class/net; test -c /dev/net/tun || exit 1; "
    script += "touch README.md new; modprobe openvswitch; exit 7"
    done = lab("6.1", "sh", "-c", script)
    assert done.returncode == 7, done.stdout + done.stderr
    booted, release, where, *links = done.stdout.split("\n")[:-1]
    assert booted.startswith(f"kernel lab: Linux {release}, up ")
    assert release == kernels.find("6.1").release
    assert (Path(where), links) == (ROOT, ["lo"])
    assert not (ROOT / "new").exists()


def test_a_command_that_takes_too_long() -> None:
    started = time.monotonic()
    done = lab("--seconds", "3", "6.1", "sleep", "1000")
    assert (done.returncode, "more than 3 s" in done.stderr) == (125, True)
    assert time.monotonic() - started < 60


def test_a_kernel_that_panics() -> None:
    done = lab("--seconds", "300", "6.1", "sh", "-c", "echo c >/proc/sysrq-trigger")
    assert done.returncode == 125
    assert "without a status; its console ends:" in done.stderr
    assert "sysrq triggered crash" in done.stderr
