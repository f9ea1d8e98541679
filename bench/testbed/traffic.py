"""Measures of what passes between two hosts, a host being a guest or a network namespace.

TCP by iperf3, small datagrams and round trips by our own traffic.c, which keeps up better.
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
from cni.kernel.netns import Namespace

PAYLOAD = 32  # bytes, the least that traffic.c sends: 74 with the headers
CONGESTION = "cubic"  # the same both ways; a host's own default may pace, and a guest's differ
PATIENCE = 20.0  # seconds beyond what a measure should take

_PORT = 7000
_IPERF_PORTS = range(5201, 5205)  # an iperf3 refuses while it tidies up after its last caller
_ports = itertools.cycle(_IPERF_PORTS)


class Host(Protocol):
    """Where commands are executed: `bench.testbed.guest.Guest` is one."""

    def run(self, command: str, timeout: float = ...) -> str: ...

    def spawn(self, command: str) -> int: ...

    def kill(self, group: int) -> None: ...


class Space:
    """A network namespace as a host. It has the guest's own programs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._env = os.environ | {"PATH": f"{image().tools}:{os.environ['PATH']}"}
        self._spawned: dict[int, subprocess.Popen[str]] = {}

    def run(self, command: str, timeout: float = 10.0) -> str:
        """What the command prints. Raises GuestError."""
        with self._start(command, subprocess.PIPE) as process:
            try:
                output = process.communicate(timeout=timeout)[0]
            except BaseException as error:
                process.kill()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise GuestError(f"{command}: more than {timeout:.0f} s") from error
                raise
        if process.returncode:
            raise GuestError(f"{command}: failed", process.returncode, output)
        return output

    def spawn(self, command: str) -> int:
        process = self._start(command, subprocess.DEVNULL)
        self._spawned[process.pid] = process
        return process.pid

    def kill(self, group: int) -> None:
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
    """`gbps` as received, in Gbit/s; `octets` received."""

    gbps: float
    octets: int


class Flood(NamedTuple):
    """Datagrams as they arrived, in thousands a second, and how many percent did not.

    `cpu_ns` is the sender's CPU time for each that it sent.
    """

    kpps: float
    loss: float
    cpu_ns: float


def listen(host: Host) -> list[int]:
    """Start the servers of what is measured towards `host`; the groups to `kill`."""
    groups = [host.spawn(f"iperf3 -s -p {port}") for port in _IPERF_PORTS]
    return [*groups, host.spawn(f"traffic serve {_PORT}")]


@contextmanager
def counted(host: Host) -> Iterator[int]:
    """The port of a server for `flood` and `round_trips` on `host`, meanwhile."""
    port = _PORT + 1
    group = host.spawn(f"traffic serve {port}")
    try:
        yield port
    finally:
        host.kill(group)


def tcp(client: Host, ip: str, octets: int, streams: int = 1, reverse: bool = False) -> Tcp:
    """So many bytes to the host that listens at `ip`, with `reverse` from it. Raises GuestError."""
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
    said = json.loads(client.run(command, PATIENCE))
    if "error" in said:
        raise GuestError(f"{command}: {said['error']}", 0)
    received = said["end"]["sum_received"]
    return Tcp(received["bits_per_second"] / 1e9, received["bytes"])


def flood(client: Host, ip: str, seconds: float, port: int = _PORT) -> Flood:
    """Small UDP datagrams as fast as `client` can. Raises GuestError."""
    command = f"traffic flood {ip} {port} {seconds * 1000:.0f} {PAYLOAD}"
    sent, received, ns, cpu = map(int, client.run(command, seconds + PATIENCE).split())
    return Flood(received * 1e6 / ns if ns else 0.0, 100 * (1 - received / sent), cpu / sent)


def round_trips(client: Host, ip: str, count: int, port: int = _PORT) -> list[float]:
    """Questions in small UDP datagrams, one after the other: µs until each answer.

    Those without an answer within a second are left out. Raises GuestError.
    """
    output = client.run(f"traffic ask {ip} {port} {count} {PAYLOAD}", PATIENCE)
    return [float(word) for word in output.split()]


def jitter(times: list[float]) -> float:
    """How much a time differs from the one before, on average (RFC 3393, of round trips)."""
    return fmean(abs(b - a) for a, b in itertools.pairwise(times))
