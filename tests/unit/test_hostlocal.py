"""host-local: the order of allocation, what is excluded or refused, and roll-back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cni.errors import AttachmentExists, BadConfig, IpamFailed, VmlinkError
from cni.ipam.hostlocal import verbs
from cni.spec.types import AttachmentKey
from tests.unit.hostlocalkit import Net, one


def test_order_skips_gateway_and_broadcast_and_wraps(tmp_path: Path) -> None:
    net = Net(tmp_path, one("10.1.0.0/29"))
    got = [net.ips(f"p{n}") for n in range(5)]
    assert got == [[f"10.1.0.{n}/29"] for n in range(2, 7)]
    with pytest.raises(IpamFailed, match=r"no address is left in ipam.ranges\[0\]\[0\]"):
        net.ips("full")
    net.delete("p1")
    net.delete("p3")
    assert net.ips("a") == ["10.1.0.3/29"]
    assert net.ips("b") == ["10.1.0.5/29"]


def test_a_released_address_is_not_given_again_at_once(tmp_path: Path) -> None:
    net = Net(tmp_path, one("10.1.0.0/24"))
    assert net.ips("a") == ["10.1.0.2/24"]
    net.delete("a")
    assert net.ips("a") == ["10.1.0.3/24"]


def test_last_address_alone_is_found_again(tmp_path: Path) -> None:
    net = Net(tmp_path, one("10.1.0.0/24", rangeStart="10.1.0.9", rangeEnd="10.1.0.9"))
    for _ in range(2):
        assert net.ips("a") == ["10.1.0.9/24"]
        net.delete("a")


def test_ranges_of_a_set_follow_each_other_with_their_own_gateways(tmp_path: Path) -> None:
    ranges = [{"subnet": "10.1.0.0/30"}, {"subnet": "10.2.0.0/30", "gateway": "10.2.0.2"}]
    net = Net(tmp_path, {"ranges": [ranges]})
    first, second = net.add("a").ips[0], net.add("b").ips[0]
    assert (first.address, first.gateway) == ("10.1.0.2/30", "10.1.0.1")
    assert (second.address, second.gateway) == ("10.2.0.1/30", "10.2.0.2")
    net.delete("a")
    assert net.ips("c") == ["10.1.0.2/30"]


def test_ipv6_range_ends_with_the_last_address(tmp_path: Path) -> None:
    net = Net(tmp_path, one("fd00::/126"))
    assert [net.ips(p) for p in "ab"] == [["fd00::2/126"], ["fd00::3/126"]]


def test_legacy_form_comes_before_ranges_and_after_the_capability(tmp_path: Path) -> None:
    legacy = {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.7", "gateway": "10.1.0.254"}
    runtime = {"ipRanges": [[{"subnet": "10.3.0.0/24"}]]}
    net = Net(tmp_path, {**legacy, **one("10.2.0.0/24")}, runtimeConfig=runtime)
    assert net.ips("a") == ["10.3.0.2/24", "10.1.0.7/24", "10.2.0.2/24"]


def test_range_from_file_serves_when_there_is_no_other(tmp_path: Path) -> None:
    file = tmp_path / "range.json"
    file.write_text('{"subnet": "10.9.0.0/24"}')
    net = Net(tmp_path, {"rangeFromFile": str(file)})
    assert net.ips("a") == ["10.9.0.2/24"]
    file.write_text("{")
    with pytest.raises(BadConfig, match=r"ipam.rangeFromFile: .* is not JSON"):
        net.ips("b")


def test_requested_addresses_of_all_three_sources(tmp_path: Path) -> None:
    ranges = [[{"subnet": f"10.{n}.0.0/24"}] for n in (1, 2, 3)]
    net = Net(
        tmp_path,
        {"ranges": ranges},
        args={"cni": {"ips": ["10.2.0.20"]}},
        runtimeConfig={"ips": ["10.3.0.30/24"]},
    )
    assert net.ips("a", IP="10.1.0.10") == ["10.1.0.10/24", "10.2.0.20/24", "10.3.0.30/24"]
    assert (net.directory / "last_reserved_ip.0").read_text() == "10.1.0.10"


@pytest.mark.parametrize(
    ("ip", "message"),
    [
        ("10.1.0.1", "CNI_ARGS IP: 10.1.0.1 is the gateway"),
        ("10.1.0.2", "CNI_ARGS IP: 10.1.0.2 .* is taken"),
        ("10.7.0.2", "CNI_ARGS IP 10.7.0.2: in no free range set"),
        ("10.1.0.255", "CNI_ARGS IP 10.1.0.255: in no free range set"),
    ],
)
def test_requested_address_refused(tmp_path: Path, ip: str, message: str) -> None:
    net = Net(tmp_path, one("10.1.0.0/24"))
    net.add("first")
    before = net.files()
    with pytest.raises(IpamFailed, match=message):
        net.add("a", IP=ip)
    assert net.files() == before


def test_duplicate_is_refused_and_the_first_stays(tmp_path: Path) -> None:
    net = Net(tmp_path, {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]})
    net.add("a")
    with pytest.raises(AttachmentExists, match=r"10.1.0.2 .*duplicate allocation is not allowed"):
        net.add("a")
    assert set(net.files()) == {"10.1.0.2", "fd00::2"}
    assert net.ips("a", "eth1") == ["10.1.0.3/24", "fd00::3/64"]


def test_a_later_set_that_fails_takes_back_only_what_this_add_got(tmp_path: Path) -> None:
    net = Net(tmp_path, {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/30"}]]})
    net.add("a")
    before = net.files()
    with pytest.raises(IpamFailed, match=r"ranges\[1\]\[0\]"):
        net.add("b")
    assert net.files() == before
    with pytest.raises(VmlinkError):
        net.add("a", IP="10.1.0.9")
    assert net.files() == before


def test_delete_and_check_need_no_valid_range(tmp_path: Path) -> None:
    net = Net(tmp_path, one("10.1.0.0/24"))
    net.add("a")
    net.config["ipam"]["ranges"] = "gone"
    verbs.check(net.request("a"))
    net.delete("a")
    assert net.files() == {}


def test_resolv_conf(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# c\n; nameserver 9.9.9.9\nnameserver 192.0.2.3\n nameserver fd00::3 # two\n"
        "domain x.example\nsearch a.example b.example\noptions ndots:5\nsearch\nbogus 1\n"
    )
    net = Net(tmp_path, {**one("10.1.0.0/24"), "resolvConf": str(file)})
    assert net.add("a").dns == {
        "nameservers": ["192.0.2.3", "fd00::3"],
        "domain": "x.example",
        "search": ["a.example", "b.example"],
        "options": ["ndots:5"],
    }
    file.unlink()
    with pytest.raises(BadConfig, match=r"ipam.resolvConf: cannot read"):
        net.add("b")
    assert set(net.files()) == {"10.1.0.2"}


@pytest.mark.parametrize(
    ("ipam", "message"),
    [
        ({}, "ipam.ranges: no range"),
        ({"ranges": [[]]}, r"ipam.ranges\[0\]: an empty range set"),
        ({"subnet": "10.0.0.0/8", "gateway": "fd00::1"}, "ipam.gateway: .* another IP version"),
        ({"subnet": "10.0.0.0/8", "routes": [{"dst": "::/0", "gw": "10.0.0.1"}]}, "another IP ver"),
        ({"ranges": [{"subnet": "10.0.0.0/8"}]}, r"ipam.ranges\[0\]: expected a list"),
        ({"ranges": [["10.0.0.0/8"]]}, r"ipam.ranges\[0\]\[0\]: expected an object"),
        (one(""), r"ipam.ranges\[0\]\[0\].subnet: expected network/prefix"),
        (one("10.0.0.0"), r"\[0\]\[0\].subnet: expected network/prefix"),
        (one("10.0.0.0/255.0.0.0"), r"\[0\]\[0\].subnet: expected network/prefix"),
        (one("10.0.0.0/-1"), r"\[0\]\[0\].subnet: expected network/prefix"),
        (one("10.0.0.0/" + "9" * 5000), r"\[0\]\[0\].subnet: expected network/prefix"),
        (one("10.0.0.0/31"), "too small; the longest prefix is /30"),
        (one("fd00::/127"), "too small; the longest prefix is /126"),
        (one("10.0.0.5/24"), "host bits set; write 10.0.0.0/24"),
        (one("10.0.0.0/24", rangeStart="10.0.1.1"), r"\[0\]\[0\].rangeStart: 10.0.1.1 is not in"),
        (one("10.0.0.0/24", rangeEnd="fd00::1"), r"\[0\]\[0\].rangeEnd: fd00::1 is not in"),
        (
            one("10.0.0.0/24", rangeStart="10.0.0.9", rangeEnd="10.0.0.8"),
            "rangeStart: it is after the rangeEnd",
        ),
        (one("10.0.0.0/24", rangeStart="10.0.0.255"), "rangeStart: it is after the rangeEnd"),
        (one("10.0.0.0/24", gateway="x"), r"\[0\]\[0\].gateway: expected an IP address"),
        (one("10.0.0.0/24", gateway=["10.0.0.1"]), r"\[0\]\[0\].gateway: expected an IP"),
        (one("fe80::/64", gateway="fe80::1%eth0"), "has a zone"),
        (
            {"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]},
            r"ipam.ranges\[0\]: IPv4 and IPv6 in one",
        ),
        (
            {"subnet": "10.0.0.0/8", "ranges": [[{"subnet": "10.9.0.0/24"}]]},
            r"ipam \(10.0.0.1-.*\) overlaps ipam.ranges\[0\]\[0\]",
        ),
        (
            {"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.0/24"}]]},
            r"ipam.ranges\[0\]\[0\] .* overlaps ipam.ranges\[0\]\[1\]",
        ),
        ({**one("10.0.0.0/24"), "dataDir": "relative"}, "ipam.dataDir: 'relative' is relative"),
        ({**one("10.0.0.0/24"), "dataDir": 7}, "ipam.dataDir: expected a string"),
        ({**one("10.0.0.0/24"), "routes": [{"dst": "x"}]}, r"ipam.routes\[0\].dst"),
        ({**one("10.0.0.0/24"), "resolvConf": "/nowhere"}, "ipam.resolvConf: cannot read"),
    ],
)
def test_bad_config_names_its_key(tmp_path: Path, ipam: dict[str, Any], message: str) -> None:
    net = Net(tmp_path, ipam)
    with pytest.raises(BadConfig, match=message):
        net.add("a")
    with pytest.raises(BadConfig, match=message):
        verbs.status("net", net.config)
    assert not net.directory.exists()


@pytest.mark.parametrize(
    ("top", "args", "message"),
    [
        ({}, {"IP": "10.0.0.7,10.0.0.8"}, "CNI_ARGS IP: expected an IP address"),
        ({}, {"IP": "10.0.0.7/33"}, "CNI_ARGS IP: .* bad prefix length"),
        ({"args": {"cni": {"ips": [7]}}}, {}, r"args.cni.ips\[0\]: expected an IP address"),
        ({"args": {"cni": {"ips": "7"}}}, {}, "args.cni.ips: expected a list"),
        ({"runtimeConfig": {"ips": ["x"]}}, {}, r"runtimeConfig.ips\[0\]: expected an IP"),
        ({"runtimeConfig": {"ipRanges": [[{}]]}}, {}, r"runtimeConfig.ipRanges\[0\]\[0\].subnet"),
    ],
)
def test_bad_request_names_its_key(
    tmp_path: Path, top: dict[str, Any], args: dict[str, str], message: str
) -> None:
    net = Net(tmp_path, one("10.0.0.0/24"), **top)
    with pytest.raises(BadConfig, match=message):
        net.add("a", **args)


@pytest.mark.parametrize("network", ["../up", "a/b", "", ".", "..", "a\n", "-x"])
def test_network_name_cannot_leave_the_data_directory(tmp_path: Path, network: str) -> None:
    net = Net(tmp_path / "data", one("10.0.0.0/24"))
    request = verbs.IpamRequest(AttachmentKey("a", "eth0"), network, net.config, {})
    for verb in (verbs.add, verbs.delete, verbs.check):
        with pytest.raises(BadConfig, match=r"^name: "):
            verb(request)
    assert list(tmp_path.iterdir()) == []
