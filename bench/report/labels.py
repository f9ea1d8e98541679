"""What metrics, conditions and contenders are called in tables, plots and on the page."""

from __future__ import annotations

from bench.results import Series

METRICS = {
    "add": "Attaching (ADD)",
    "del": "Detaching (DEL)",
    "check": "Checking (CHECK)",
    "rate": "ADDs per second",
    "burst_add": "A burst of ADDs, until the last is done",
    "burst_del": "A burst of DELs, until the last is done",
    "cpu": "CPU of vmlinkd for ADD, CHECK and DEL",
    "memory": "Memory of vmlinkd",
    "idle_cpu": "CPU of vmlinkd when idle",
    "tcp_in": "TCP into the guest",
    "tcp_out": "TCP out of the guest",
    "pps_in": "Small packets into the guest",
    "pps_out": "Small packets out of the guest",
    "loss_in": "Small packets lost on the way in",
    "loss_out": "Small packets lost on the way out",
    "rtt": "Round trip",
    "jitter": "Jitter",
    "cpu_per_gb": "CPU of the host for a gigabyte",
    "cpu_per_packet": "CPU of the host for a small packet",
}
PARTS = "Where the time goes"

ROLES = {
    "vmlink": "vmlink",
    "peer": "what people use now",
    "baseline": "what vmlink replaces",
    "ceiling": "a limit that nothing can pass",
    "floor": "a limit that nothing can pass",
}

_DEFAULTS = {"datapath": {"path": "host-guest"}}  # conditions that a series may leave out
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
    "pool": "the port comes from a pool",
}
_SWITCHES = {
    "linux": "Linux",
    "ovs": "Open vSwitch",
    "ovn": "OVN",
    "dpdk": "beside a poll mode driver of OVS-DPDK",
}
_OTHERS = {
    "bridge": "the CNI plugin bridge: veth and Linux bridge, nothing for a VM",
    "ptp": "the CNI plugin ptp: veth and routes, nothing for a VM",
    "ovs-vsctl": "adds an existing veth as a port, and waits for the switch",
    "ovs-vsctl, one by one": "the same, one call after the other as in a script",
    "ovs-vsctl vhost-user": "adds the same port, and waits for the switch",
    "OVN alone": "the same port's row, from its commit until OVN has installed it",
    "kernel alone": "the kernel's own time for the same work of tc on a Linux bridge",
    "bridge-tap-linux": "veth, Linux bridge in the pod, tap; on a Linux bridge",
    "bridge-tap-ovs": "veth, Linux bridge in the pod, tap; on Open vSwitch",
    "/bin/true": "a process that does nothing",
    "guest-loopback": "a guest sends to itself",
}


def metric(name: str) -> str:
    """A metric's title; its name when it has none."""
    return METRICS.get(name, name)


def is_part(name: str) -> bool:
    """Whether a metric is a part of a call's time."""
    return name.startswith("part:")


def conditions(series: Series, *but: str) -> str:
    """A series' conditions, without the keys `but`."""
    at = {**_DEFAULTS.get(series.suite, {}), **series.at}
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
    """What a contender is, in one line; empty when we do not know it."""
    if name == "veth-linux" and role == "ceiling":
        return "veth to veth through the Linux bridge, without a guest"
    mode, _, rest = name.partition("-")
    uplink, _, engine = rest.partition("-")
    if mode in _MODES and uplink in _UPLINKS:
        label = f"{_MODES[mode]}, {_UPLINKS[uplink]}"
        return f"{label}; {_ENGINES[engine]}" if engine in _ENGINES else label
    return _OTHERS.get(name, "")
