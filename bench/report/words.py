"""How metrics, conditions, contenders and numbers are called where people read them."""

from __future__ import annotations

from bench.report.results import Series

METRICS = {
    "add": "Attaching (ADD)",
    "del": "Detaching (DEL)",
    "check": "Checking (CHECK)",
    "rate": "ADDs in a second",
    "burst_add": "A burst of ADDs, until the last is done",
    "burst_del": "A burst of DELs, until the last is done",
    "cpu": "CPU of vmlinkd for ADD, CHECK and DEL",
    "memory": "Memory of vmlinkd",
    "idle_cpu": "CPU of vmlinkd when nobody asks it",
    "tcp_in": "TCP into the guest",
    "tcp_out": "TCP out of the guest",
    "pps_in": "Small packets into the guest",
    "pps_out": "Small packets out of the guest",
    "loss_in": "Small packets lost on the way in",
    "loss_out": "Small packets lost on the way out",
    "rtt": "Request and response",
    "jitter": "Jitter",
    "cpu_per_gb": "CPU of the host for a gigabyte",
    "cpu_per_packet": "CPU of the host for a small packet",
}
PARTS = "Where the time goes"

ROLES = {
    "vmlink": "vmlink",
    "peer": "what people use now",
    "baseline": "what vmlink replaces",
    "ceiling": "a limit that cannot be passed",
    "floor": "a limit that cannot be passed",
}

_UNLESS_TOLD = {"datapath": {"path": "host-guest"}}
_MODES = {
    "tc": "guest, tap, redirect in the kernel, veth",
    "tap": "guest, tap which is itself the switch's port",
    "macvtap": "guest, macvtap",
    "vhostuser": "guest, memory shared with the switch",
    "veth": "a plain pod, veth",
}
_UPLINKS = {
    "linux": "Linux bridge",
    "ovs": "Open vSwitch",
    "ovn": "Open vSwitch, a logical port of OVN",
    "master": "a NIC",
    "chained": "the interface that another plugin made",
}
_ENGINES = {
    "tcx": "redirected by a program at tcx",
    "cls-bpf": "redirected by the same program at the classifier",
    "mirred": "redirected by the action mirred",
    "pool": "the port is made ahead, in a pool",
}
_SWITCHES = {
    "linux": "Linux",
    "ovs": "Open vSwitch",
    "ovn": "OVN",
    "dpdk": "beside the poller of OVS-DPDK",
}
_OTHERS = {
    "bridge": "the CNI plugin bridge: veth and Linux bridge, nothing for a VM",
    "ptp": "the CNI plugin ptp: veth and routes, nothing for a VM",
    "ovs-vsctl": "adds a port that is made beforehand, and waits for the switch",
    "ovs-vsctl, one by one": "the same, each after the other as a script does it",
    "ovs-vsctl vhost-user": "adds the same port, and waits for the switch",
    "OVN alone": "the same port's row, from its commit until OVN has installed it",
    "kernel alone": "the kernel's own time for the same work of tc on a Linux bridge",
    "bridge-tap-linux": "veth, Linux bridge in the pod, tap; on a Linux bridge",
    "bridge-tap-ovs": "veth, Linux bridge in the pod, tap; on Open vSwitch",
    "/bin/true": "starting a process that does nothing",
    "guest-loopback": "a guest talks to itself",
}


def metric(name: str) -> str:
    return METRICS.get(name, name)


def is_part(name: str) -> bool:
    """Does this metric say where the time of another goes?"""
    return name.startswith("part:")


def conditions(series: Series, *but: str) -> str:
    """What the series' `at` says, without the keys `but`."""
    at = {**_UNLESS_TOLD.get(series.suite, {}), **series.at}
    return ", ".join(_condition(key, value) for key, value in at.items() if key not in but)


def _condition(key: str, value: int | str) -> str:
    match key, value:
        case "parallel", 1:
            return "one at a time"
        case "parallel", _:
            return f"{value} at once"
        case "present", _:
            return f"{value} there already"
        case "streams", 1:
            return "1 stream"
        case "streams", _:
            return f"{value} streams"
        case "path", "host-guest":
            return "host and guest"
        case "path", "guest-guest":
            return "guest and guest"
        case "path", "veth-veth":
            return "without a guest"
        case "switch", _:
            return _SWITCHES.get(str(value), str(value))
        case "direction", "in" | "out":
            return f"TCP {value}"
        case "verb", _:
            return str(value)
    return f"{key} {value}"


def contender(name: str, role: str) -> str:
    """What it is, in one line; empty when it is not one of ours."""
    if name == "veth-linux" and role == "ceiling":
        return "veth to veth through the Linux bridge, without a guest"
    mode, _, rest = name.partition("-")
    uplink, _, engine = rest.partition("-")
    if mode in _MODES and uplink in _UPLINKS:
        told = f"{_MODES[mode]}, {_UPLINKS[uplink]}"
        return f"{told}; {_ENGINES[engine]}" if engine in _ENGINES else told
    return _OTHERS.get(name, "")


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "-"
    size = abs(value)
    digits = 0 if size >= 100 or value == 0 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{digits}f}"


def ratio(value: float | None) -> str:
    """To hundredths, and finer where there are none."""
    if value is None or value == 0:
        return "-" if value is None else "0"
    size = abs(value)
    return f"{value:.{3 if size < 0.1 else 2 if size < 10 else 1}f}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
