"""ping and iperf3 between a guest and a network namespace or another guest."""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
import statistics
import subprocess
from typing import Any

from bench.testbed.guest import Guest, GuestError, enter_namespace
from bench.testbed.slowness import SLOWNESS

_ports = itertools.count(5201)


def ping(
    netns: str, ip: str, count: int = 20, size: int | None = None, dont_fragment: bool = False
) -> float:
    """Median round trip in ms from `netns`, with `size` bytes after the ICMP header.

    Lost answers are left out. Raises GuestError when all are lost or the packet is too long.
    """
    argv = ["ping", "-n", "-c", str(count), "-i", "0.01", "-W", "1"]
    argv += ["-s", str(size)] if size is not None else []
    argv += ["-M", "do"] if dont_fragment else []
    output = _run([*argv, ip], netns, count * 1.1 + 10)
    return statistics.median(float(ms) for ms in re.findall(r"time=([\d.]+) ms", output))


def iperf_tcp(
    guest: Guest,
    guest_ip: str,
    where: str | Guest,
    seconds: float = 2.0,
    reverse: bool = False,
    parallel: int = 1,
) -> float:
    """TCP into the guest (`reverse`: out of it) from `where`; returns Gbit/s as received.

    `where` is a namespace or another guest. iperf3 counts whole seconds, so `seconds` is rounded
    up. Raises GuestError.
    """
    flags = ["-P", str(parallel), *(["-R"] if reverse else [])]
    end = _iperf(guest, guest_ip, where, seconds, flags)
    return float(end["sum_received"]["bits_per_second"]) / 1e9


def iperf_udp(
    guest: Guest,
    guest_ip: str,
    netns: str,
    seconds: float = 2.0,
    reverse: bool = False,
    rate: str = "1G",
    length: int = 1400,
) -> tuple[float, float]:
    """UDP into the guest (`reverse`: out of it); returns Gbit/s as received and percent lost.

    `rate` is what is offered (iperf3's notation, 0 is unlimited), in datagrams of `length` bytes.
    `seconds` is rounded up. Raises GuestError.
    """
    flags = ["-u", "-b", rate, "-l", str(length), *(["-R"] if reverse else [])]
    end = _iperf(guest, guest_ip, netns, seconds, flags)["sum"]
    received = (end["packets"] - end["lost_packets"]) * length * 8 / end["seconds"]
    return received / 1e9, float(end["lost_percent"])


def _iperf(
    guest: Guest, guest_ip: str, where: str | Guest, seconds: float, flags: list[str]
) -> Any:
    port = next(_ports)
    whole = max(1, math.ceil(seconds))
    server = guest.spawn(f"iperf3 -s -1 -p {port}")
    try:
        listening = f":{port:04X} [0-9A-F:]* 0A "
        guest.run(f"until grep -q '{listening}' /proc/net/tcp /proc/net/tcp6; do usleep 9000; done")
        argv = ["iperf3", "-J", "-c", guest_ip, "-p", str(port), "-t", str(whole), *flags]
        return json.loads(_run(argv, where, whole + 20))["end"]
    finally:
        guest.kill(server)


def _run(argv: list[str], where: str | Guest, timeout: float) -> str:
    if isinstance(where, Guest):
        return where.run(shlex.join(argv), timeout)
    try:
        done = subprocess.run(
            [*enter_namespace(where), *argv],
            capture_output=True,
            text=True,
            timeout=timeout * SLOWNESS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise GuestError(f"{shlex.join(argv)}: more than {timeout:.0f} s") from error
    if done.returncode:
        output = done.stdout + done.stderr
        raise GuestError(f"{shlex.join(argv)}: failed", done.returncode, output)
    return done.stdout
