"""All that is measured when it is a contender's turn.

tcp_in, tcp_out    iperf3, as received; at `streams`
pps_in, pps_out    small UDP datagrams as they arrive, offered as fast as one thread can
loss_in, loss_out  what did not arrive of those
rtt, jitter        questions and answers in small UDP datagrams, one after the other
cpu_per_gb         CPU seconds per 10^9 bytes of TCP (one stream) of the whole machine, without
                   the vCPUs of its guests; at `direction`
cpu_per_packet     a host's CPU for each small datagram that it sends: the way up to the tap, or
                   to the socket where there is no guest, if the kernel takes it there; what else
                   runs hardly changes it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.contenders.pairs import Contender, Pair
from bench.report.results import Results, Series
from bench.suites.cputime import host_seconds
from bench.testbed import traffic

WARM_UP = 32 << 20  # bytes of TCP; its rate tells how many a flow of a given time takes
WARM_UP_ASKED = 100
OVERHEAD = 0.1  # estimate of the seconds around each measure
UNITS = {
    "tcp_in": "Gbit/s",
    "tcp_out": "Gbit/s",
    "pps_in": "kpps",
    "pps_out": "kpps",
    "loss_in": "%",
    "loss_out": "%",
    "rtt": "µs",
    "jitter": "µs",
    "cpu_per_gb": "s",
    "cpu_per_packet": "ns",
}


@dataclass(frozen=True)
class Effort:
    """`passes` over all contenders, in each of them `flow` seconds of every kind of TCP, `flood`
    seconds of small datagrams each way, and `asked` round trips.
    """

    passes: int
    flow: float
    flood: float
    asked: int


@dataclass(frozen=True)
class Entry:
    """A contender on a path. `in` is towards its far host; `streams` of TCP may be none.

    `beside` names the entry whose far host is this one's near.
    """

    contender: Contender
    at: Mapping[str, int | str] = field(default_factory=dict)
    directions: tuple[str, ...] = ("in", "out")
    streams: tuple[int, ...] = (1, 4)
    beside: str = ""

    @property
    def name(self) -> str:
        return ", ".join([self.contender.name, *map(str, self.at.values())])

    def series(self, metric: str, **at: int | str) -> Series:
        one = self.contender
        where = {**self.at, **at}
        return Series("datapath", metric, UNITS[metric], one.name, one.role, where, note=one.note)

    def absent(self, reason: str) -> Series:
        """What says why there are no samples, or no more."""
        series = self.series("tcp_in" if self.streams else "pps_in")
        series.note = reason
        return series

    def seconds(self, effort: Effort) -> float:
        """Estimate of one visit."""
        flows = (len(self.streams) * (effort.flow + OVERHEAD) + OVERHEAD) if self.streams else 0.0
        asking = effort.asked / 5000 if self.contender.boots else 0.0
        return len(self.directions) * (flows + effort.flood + OVERHEAD) + asking


def visit(entry: Entry, pair: Pair, effort: Effort, results: Results) -> None:
    """Warm up and measure once. Raises GuestError."""
    traffic.round_trips(pair.near, pair.far_ip, WARM_UP_ASKED)
    for direction in entry.directions:
        if entry.streams:
            _flows(entry, pair, direction, effort.flow, results)
        _flood(entry, pair, direction, effort.flood, results)
    times = traffic.round_trips(pair.near, pair.far_ip, effort.asked)
    results.add(entry.series("rtt"), *times)
    results.add(entry.series("jitter"), traffic.jitter(times))


def _flows(entry: Entry, pair: Pair, direction: str, seconds: float, results: Results) -> None:
    reverse = direction == "out"
    vmms = [guest.pid for guest in pair.guests]
    warm = traffic.tcp(pair.near, pair.far_ip, WARM_UP, reverse=reverse)
    octets = round(warm.gbps * 1e9 / 8 * seconds)
    for streams in entry.streams:
        before = host_seconds(vmms)
        flow = traffic.tcp(pair.near, pair.far_ip, octets, streams, reverse)
        spent = host_seconds(vmms) - before
        results.add(entry.series(f"tcp_{direction}", streams=streams), flow.gbps)
        if streams == 1:
            per_gb = spent * 1e9 / flow.octets
            results.add(entry.series("cpu_per_gb", direction=direction), per_gb)


def _flood(entry: Entry, pair: Pair, direction: str, seconds: float, results: Results) -> None:
    if direction == "in":
        flood = traffic.flood(pair.near, pair.far_ip, seconds)
    else:
        with traffic.counted(pair.near) as port:
            flood = traffic.flood(pair.far, pair.near_ip, seconds, port)
    results.add(entry.series(f"pps_{direction}"), flood.kpps)
    results.add(entry.series(f"loss_{direction}"), flood.loss)
    if direction == "in" and pair.by_kernel:
        results.add(entry.series("cpu_per_packet"), flood.cpu_ns)
