"""The metrics of `bench datapath`, and how one measurement takes them.

tcp_in, tcp_out    iperf3, as received; at `streams`
pps_in, pps_out    small UDP datagrams that arrive while one thread sends as fast as it can
loss_in, loss_out  the share of them that does not arrive
rtt, jitter        requests and responses in small UDP datagrams, one after the other
cpu_per_gb         CPU seconds for 10^9 bytes of TCP (one stream) of the whole machine without the
                   vCPUs of its guests; at `direction`
cpu_per_packet     the sender's CPU for each small datagram, where the kernel takes it up to the tap
                   or socket in the sender's context; hardly changed by what else runs
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.contenders.datapaths import Datapath, Endpoints
from bench.results import Results, Series
from bench.testbed import traffic
from bench.testbed.cpu_time import host_seconds

WARM_UP_BYTES = 32 << 20  # of TCP; the rate tells how many bytes take how long
WARM_UP_ROUND_TRIPS = 100
OVERHEAD = 0.1  # estimated seconds around each transfer
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
    """How much to measure: `passes` over all datapaths.

    In each pass there are `tcp_seconds` for each number of streams and direction, `udp_seconds` of
    small datagrams for each direction, and `round_trips`.
    """

    passes: int
    tcp_seconds: float
    udp_seconds: float
    round_trips: int


@dataclass(frozen=True)
class Measurement:
    """A datapath and the conditions under which it is measured.

    `in` is the direction towards its far host; `streams` of TCP may be none. With `sender`, the
    name of another measurement, that one's far host sends instead of this one's near host.
    """

    datapath: Datapath
    at: Mapping[str, int | str] = field(default_factory=dict)
    directions: tuple[str, ...] = ("in", "out")
    streams: tuple[int, ...] = (1, 4)
    sender: str = ""

    @property
    def name(self) -> str:
        """The datapath's name and the conditions."""
        return ", ".join([self.datapath.name, *map(str, self.at.values())])

    def series(self, metric: str, **at: int | str) -> Series:
        """A series of suite datapath, without samples yet."""
        path, unit = self.datapath, UNITS[metric]
        where = {**self.at, **at}
        return Series("datapath", metric, unit, path.name, path.role, where, note=path.note)

    def failed(self, reason: str) -> Series:
        """A series that says why there are no samples, or no more of them."""
        series = self.series("tcp_in" if self.streams else "pps_in")
        series.note = reason
        return series

    def seconds(self, effort: Effort) -> float:
        """Estimated seconds of one pass."""
        tcp = len(self.streams) * (effort.tcp_seconds + OVERHEAD) + OVERHEAD if self.streams else 0
        round_trips = effort.round_trips / 5000 if self.datapath.has_guest else 0.0
        return len(self.directions) * (tcp + effort.udp_seconds + OVERHEAD) + round_trips


def measure(what: Measurement, ends: Endpoints, effort: Effort, results: Results) -> None:
    """Warm up and take every metric once. Raises GuestError."""
    traffic.round_trips(ends.near, ends.far_ip, WARM_UP_ROUND_TRIPS)
    for direction in what.directions:
        if what.streams:
            _measure_tcp(what, ends, direction, effort.tcp_seconds, results)
        _measure_udp(what, ends, direction, effort.udp_seconds, results)
    times = traffic.round_trips(ends.near, ends.far_ip, effort.round_trips)
    results.add(what.series("rtt"), *times)
    results.add(what.series("jitter"), traffic.jitter(times))


def _measure_tcp(
    what: Measurement, ends: Endpoints, direction: str, seconds: float, results: Results
) -> None:
    reverse = direction == "out"
    vmms = [guest.pid for guest in ends.guests]
    warm_up = traffic.tcp(ends.near, ends.far_ip, WARM_UP_BYTES, reverse=reverse)
    octets = round(warm_up.gbps * 1e9 / 8 * seconds)
    for streams in what.streams:
        before = host_seconds(vmms)
        transfer = traffic.tcp(ends.near, ends.far_ip, octets, streams, reverse)
        cpu = host_seconds(vmms) - before
        results.add(what.series(f"tcp_{direction}", streams=streams), transfer.gbps)
        if streams == 1:
            per_gb = cpu * 1e9 / transfer.octets
            results.add(what.series("cpu_per_gb", direction=direction), per_gb)


def _measure_udp(
    what: Measurement, ends: Endpoints, direction: str, seconds: float, results: Results
) -> None:
    if direction == "in":
        flood = traffic.flood(ends.near, ends.far_ip, seconds)
    else:
        with traffic.udp_server(ends.near) as port:
            flood = traffic.flood(ends.far, ends.near_ip, seconds, port)
    results.add(what.series(f"pps_{direction}"), flood.kpps)
    results.add(what.series(f"loss_{direction}"), flood.loss)
    if direction == "in" and ends.sender_pays:
        results.add(what.series("cpu_per_packet"), flood.cpu_ns)
