"""Bandwidth limits: the parameters of the kernel's tbf qdisc, and the steps that set them."""

from __future__ import annotations

from typing import Any

import pytest

from cni.attach.plan import Step
from cni.errors import BadConfig
from cni.kernel.netlink_message import attributes
from cni.kernel.rtnl_decode import decode_qdisc
from cni.modes import MODES
from cni.modes.steps.limits import LinkLimits, RedirectLimits
from cni.modes.steps.token_bucket import Limit
from tests.unit.purekit import KEY, PREV, netconf

LIMIT = {"ingressRate": 8_000_000, "ingressBurst": 80_000, "egressRate": 0, "egressBurst": 0}
LINUX = {"linux": {"bridge": "br0"}}
OVS = {"ovs": {"bridge": "br0"}}
CHAINED = {"prevResult": PREV}


def written(rate: int, burst: int, mtu: int = 1500) -> tuple[int, int, int]:
    """Bytes per second, size of the bucket and of the queue in bytes, as sent to the kernel."""
    body = Limit("egress", rate, burst).tbf(3, KEY.qdisc, mtu).body
    options = attributes(attributes(body, 20)[2])
    queue, bucket = options[1][24:28], options[6]
    return (
        decode_qdisc(body).rate,
        int.from_bytes(bucket, "little"),
        int.from_bytes(queue, "little"),
    )


@pytest.mark.parametrize(
    ("rate", "burst", "expected"),
    [
        (50_000_000, 64 << 13, (6_250_000, 65536, 156_250 + 65536)),
        (50_000_000, 1518 * 8, (6_250_000, 1518, 156_250 + 1518)),
        (8_000_000, 100_000_000, (1_000_000, 12_500_000, 25_000 + 131_072)),
        (1, 1518 * 8, (1, 1518, 1518)),
        (2**53, 2**30, (2**50, 2**27, 2**32 - 1)),
    ],
)
def test_the_queue_is_for_the_rate_and_not_for_the_whole_burst(
    rate: int, burst: int, expected: tuple[int, int, int]
) -> None:
    assert written(rate, burst) == expected


@pytest.mark.parametrize("burst", [2**31 - 1, 2**32 - 1, 2**53])
@pytest.mark.parametrize(
    ("rate", "bucket"), [(10_000, 131_072), (10_000_000, 131_072), (10**9, 12_500_000)]
)
def test_a_burst_that_nobody_chose_is_a_tenth_of_a_second(
    rate: int, bucket: int, burst: int
) -> None:
    rates = {"egressRate": rate, "egressBurst": burst}
    limits = netconf(**LINUX, bandwidth=rates).bandwidth
    assert limits is not None
    assert limits.egress_burst // 8 == bucket


@pytest.mark.parametrize(("mtu", "least"), [(1500, 1518 * 8), (9000, 9018 * 8)])
def test_a_burst_that_no_full_frame_passes_is_refused(mtu: int, least: int) -> None:
    assert written(8000, least, mtu)[1] == least // 8
    with pytest.raises(BadConfig, match=rf"bandwidth.egressBurst: {least - 1} .* give {least} or"):
        written(8000, least - 1, mtu)


@pytest.mark.parametrize(
    ("mode", "uplink", "kind"),
    [
        ("tc", LINUX, RedirectLimits),
        ("veth", LINUX, LinkLimits),
        ("tap", LINUX, LinkLimits),
        ("macvtap", {"master": "nic0"}, LinkLimits),
        ("macvtap", CHAINED, LinkLimits),
        ("veth", OVS, None),
        ("tc", OVS, RedirectLimits),
        ("tap", OVS, None),
    ],
)
def test_who_limits(mode: str, uplink: dict[str, Any], kind: type[Step] | None) -> None:
    def limits(**conf: Any) -> list[Step]:
        plan = MODES[mode].plan(KEY, netconf(mode=mode, **uplink, **conf))
        return [step for step in plan.steps if isinstance(step, RedirectLimits | LinkLimits)]

    assert all(vars(step)["bandwidth"] == (0, 0, 0, 0) for step in limits())
    assert [type(step) for step in limits(bandwidth=LIMIT)] == ([kind] if kind else [])


@pytest.mark.parametrize("mode", ["veth", "tap"])
def test_a_del_that_knows_of_no_bandwidth_removes_the_ifb(mode: str) -> None:
    plan = MODES[mode].plan(KEY, netconf(**LINUX, mode=mode))
    assert LinkLimits in {type(step) for step in plan.steps}


def test_an_interface_that_stays_is_always_looked_after() -> None:
    steps = MODES["tc"].plan(KEY, netconf(**CHAINED)).steps
    assert RedirectLimits("eth0", KEY.tap_link, True, (0, 0, 0, 0)) in steps
