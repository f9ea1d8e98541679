"""Throughput and latency between two hosts, a host being a guest or a network namespace.

TCP is sent by iperf3; small UDP datagrams and round trips by our own traffic.c, since iperf3 sends
fewer of them.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, Protocol

from bench.testbed.guest import GuestError
from bench.testbed.image import image
from bench.testbed.slowness import SLOWNESS
from cni.kernel.netns import Namespace

PAYLOAD = 32  # bytes, the least that traffic.c sends: 74 with the headers
CONGESTION = "cubic"  # the same both ways: hosts' and guests' defaults differ, and some pace
GRACE = 20.0  # seconds that a measurement may take longer than planned

_PORT = 7000
_IPERF_PORTS = range(5201, 5205)  # an iperf3 refuses calls while it tidies up after the last one
_ports = itertools.cycle(_IPERF_PORTS)


class Host(Protocol):
    """Where commands run: `bench.testbed.guest.Guest`, or a NamespaceHost."""

    def run(self, command: str, timeout: float = ...) -> str:
        """What a command prints, within `timeout` seconds times SLOWNESS. Raises GuestError."""
        ...

    def spawn(self, command: str) -> int:
        """Start a command in the background; returns the id of its process group."""
        ...

    def kill(self, group: int) -> None:
        """End what `spawn` started."""
        ...


class NamespaceHost:
    """A network namespace as a host, with the guests' own programs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._env = os.environ | {"PATH": f"{image().tools}:{os.environ['PATH']}"}
        self._spawned: dict[int, subprocess.Popen[str]] = {}

    def run(self, command: str, timeout: float = 10.0) -> str:
        """What a command prints, within `timeout` seconds times SLOWNESS. Raises GuestError."""
        with self._start(command, subprocess.PIPE) as process:
            try:
                output = process.communicate(timeout=timeout * SLOWNESS)[0]
            except BaseException as error:
                process.kill()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise GuestError(f"{command}: more than {timeout:.0f} s") from error
                raise
        if process.returncode:
            raise GuestError(f"{command}: failed", process.returncode, output)
        return output

    def spawn(self, command: str) -> int:
        """Start a command in the background; returns its process id."""
        process = self._start(command, subprocess.DEVNULL)
        self._spawned[process.pid] = process
        return process.pid

    def kill(self, group: int) -> None:
        """End what `spawn` started."""
        process = self._spawned.pop(group)
        process.kill()
        process.wait()

    def _start(self, command: str, output: int) -> subprocess.Popen[str]:
        argv = ["setpriv", "--pdeathsig", "KILL", *shlex.split(command)]
        with Namespace.open(str(self._path)) as namespace, namespace.entered():
            return subprocess.Popen(
                argv, stdout=output, stderr=subprocess.STDOUT, env=self._env, text=True
            )


class Tcp(NamedTuple):
    """A TCP transfer: the rate in Gbit/s and the bytes, both as received."""

    gbps: float
    octets: int


class Flood(NamedTuple):
    """UDP datagrams: thousands per second that arrived, percent lost, and the sender's CPU.

    `cpu_ns` is the CPU time for each datagram sent.
    """

    kpps: float
    loss: float
    cpu_ns: float


def start_servers(host: Host) -> list[int]:
    """Start the servers for `tcp`, `flood` and `round_trips`; returns the groups to `kill`."""
    groups = [host.spawn(f"iperf3 -s -p {port}") for port in _IPERF_PORTS]
    return [*groups, host.spawn(f"traffic serve {_PORT}")]


@contextmanager
def udp_server(host: Host) -> Iterator[int]:
    """Run one more server for `flood` and `round_trips`; yields its port."""
    port = _PORT + 1
    group = host.spawn(f"traffic serve {port}")
    try:
        yield port
    finally:
        host.kill(group)


def tcp(client: Host, ip: str, octets: int, streams: int = 1, reverse: bool = False) -> Tcp:
    """Send so many bytes to the server at `ip`, with `reverse` from it. Raises GuestError."""
    flags = f"-n {octets} -P {streams} -C {CONGESTION}" + (" -R" if reverse else "")
    for port in itertools.islice(_ports, len(_IPERF_PORTS)):
        try:
            return _iperf(client, f"iperf3 -J -c {ip} -p {port} {flags}")
        except GuestError as error:
            if error.status is None:  # it took too long
                raise
            refusal = error
    raise refusal


def _iperf(client: Host, command: str) -> Tcp:
    report = json.loads(client.run(command, GRACE))
    if "error" in report:
        raise GuestError(f"{command}: {report['error']}", 0)
    received = report["end"]["sum_received"]
    return Tcp(received["bits_per_second"] / 1e9, received["bytes"])


def flood(client: Host, ip: str, seconds: float, port: int = _PORT) -> Flood:
    """Send small UDP datagrams as fast as `client` can. Raises GuestError."""
    command = f"traffic flood {ip} {port} {seconds * 1000:.0f} {PAYLOAD}"
    sent, received, ns, cpu = map(int, client.run(command, seconds + GRACE).split())
    return Flood(received * 1e6 / ns if ns else 0.0, 100 * (1 - received / sent), cpu / sent)


def round_trips(client: Host, ip: str, count: int, port: int = _PORT) -> list[float]:
    """Send small UDP requests one after the other; returns µs until each response.

    Requests without a response within a second are left out. Raises GuestError.
    """
    output = client.run(f"traffic ask {ip} {port} {count} {PAYLOAD}", GRACE)
    return [float(us) for us in output.split()]


def jitter(times: list[float]) -> float:
    """The mean difference of successive round trips, in their unit (after RFC 3393)."""
    return fmean(abs(b - a) for a, b in itertools.pairwise(times))
