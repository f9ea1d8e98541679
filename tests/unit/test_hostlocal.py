"""host-local in-process: allocation order, exclusions, refusals, roll-back, the store's files."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cni import hostlocal
from cni.errors import (
    AttachmentExists,
    BadConfig,
    CheckFailed,
    IOFailure,
    IpamFailed,
    NotReady,
    VmlinkError,
)
from cni.types import AttachmentKey, Result, Route


class Net:
    """One network in a private data directory."""

    def __init__(self, root: Path, ipam: dict[str, Any], **top: Any) -> None:
        self.directory = root / "net"
        self.config = {"cniVersion": "1.0.0", "name": "net", **top}
        self.config["ipam"] = {"type": "host-local", "dataDir": str(root), **ipam}

    def request(self, pod: str, ifname: str = "eth0", **args: str) -> hostlocal.IpamRequest:
        return hostlocal.IpamRequest(AttachmentKey(pod, ifname), "net", self.config, args)

    def add(self, pod: str, ifname: str = "eth0", **args: str) -> Result:
        return hostlocal.add(self.request(pod, ifname, **args))

    def ips(self, pod: str, ifname: str = "eth0", **args: str) -> list[str]:
        return [ip.address for ip in self.add(pod, ifname, **args).ips]

    def delete(self, pod: str, ifname: str = "eth0") -> None:
        hostlocal.delete(self.request(pod, ifname))

    def files(self) -> dict[str, bytes]:
        skip = ("lock", "last_reserved_ip.")
        return {
            p.name: p.read_bytes() for p in self.directory.iterdir() if not p.name.startswith(skip)
        }

    def put(self, name: str, content: bytes) -> None:
        self.directory.mkdir(exist_ok=True)
        (self.directory / name).write_bytes(content)


def one(subnet: str, **more: Any) -> dict[str, Any]:
    return {"ranges": [[{"subnet": subnet, **more}]]}


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


def test_dual_stack_files_modes_and_result(tmp_path: Path) -> None:
    ipam: dict[str, Any] = {
        "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "2001:db8:0:0:1::/80"}]]
    }
    ipam["routes"] = [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fe80::1", "mtu": 1400}]
    net = Net(tmp_path, ipam)
    got = net.add("a", "net1")
    assert [(ip.address, ip.gateway, ip.interface) for ip in got.ips] == [
        ("10.1.0.2/24", "10.1.0.1", None),
        ("2001:db8::1:0:0:2/80", "2001:db8::1:0:0:1", None),
    ]
    assert got.routes == (Route("0.0.0.0/0"), Route("::/0", "fe80::1", mtu=1400))
    assert net.files() == dict.fromkeys(("10.1.0.2", "2001:db8::1:0:0:2"), b"a\r\nnet1")
    assert (net.directory / "last_reserved_ip.1").read_text() == "2001:db8::1:0:0:2"
    mode = {p.name: stat.S_IMODE(p.stat().st_mode) for p in net.directory.iterdir()}
    assert mode["10.1.0.2"] == mode["last_reserved_ip.0"] == 0o644 & ~_umask()
    assert mode["lock"] == 0o750 & ~_umask()


def _umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


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


def test_delete_knows_the_old_format_only_when_the_new_one_finds_nothing(tmp_path: Path) -> None:
    net = Net(tmp_path, one("10.1.0.0/24"))
    net.put("10.1.0.50", b"a\n")
    net.put("10.1.0.51", b"a\r\neth0")
    net.delete("a")
    assert set(net.files()) == {"10.1.0.50"}
    hostlocal.check(net.request("a"))
    net.delete("a")
    assert net.files() == {}
    with pytest.raises(CheckFailed, match="holds no address of a/eth0"):
        hostlocal.check(net.request("a"))
    net.delete("a")


def test_delete_and_check_need_no_valid_range(tmp_path: Path) -> None:
    net = Net(tmp_path, one("10.1.0.0/24"))
    net.add("a")
    net.config["ipam"]["ranges"] = "gone"
    hostlocal.check(net.request("a"))
    net.delete("a")
    assert net.files() == {}


def test_collect_keeps_valid_and_old_format_and_bookkeeping(tmp_path: Path) -> None:
    net = Net(tmp_path, one("10.1.0.0/24"))
    for pod, ifname in (("keep", "eth0"), ("keep", "eth1"), ("gone", "eth0")):
        net.add(pod, ifname)
    net.put("10.1.0.50", b"keep")
    net.put("10.1.0.51", b"gone")
    net.put("10.1.0.52", b"")
    (net.directory / "10.1.0.53").mkdir()
    net.put("notes.txt", b"gone")
    hostlocal.collect("net", net.config, [AttachmentKey("keep", "eth0")])
    assert {p.name for p in net.directory.iterdir()} == {
        *("10.1.0.2", "10.1.0.50", "10.1.0.53", "notes.txt", "lock", "last_reserved_ip.0")
    }
    assert net.ips("new") == ["10.1.0.5/24"]


@pytest.mark.parametrize("inotify", [True, False])
def test_changes_by_others_are_seen(
    tmp_path: Path, inotify: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not inotify:
        monkeypatch.setattr(hostlocal, "_watch", lambda _directory: -1)
    net = Net(tmp_path, one("10.1.0.0/24"))
    net.add("a")
    net.put("10.1.0.3", b"other\r\neth0")
    (net.directory / "10.1.0.2").write_bytes(b"b\r\neth0")
    with pytest.raises(AttachmentExists):
        net.add("b")
    assert net.ips("a") == ["10.1.0.4/24"]
    (net.directory / "10.1.0.2").unlink()
    assert net.ips("b") == ["10.1.0.5/24"]


def test_address_taken_unseen_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(tmp_path, one("10.1.0.0/24"))
    net.add("a")
    monkeypatch.setattr(hostlocal._Store, "_changed", lambda _self: set())
    net.put("10.1.0.3", b"other\r\neth0")
    assert net.ips("b") == ["10.1.0.4/24"]
    (net.directory / "10.1.0.2").write_bytes(b"c\r\neth0")
    net.delete("a")
    assert net.files()["10.1.0.2"] == b"c\r\neth0"


def test_directory_that_was_replaced_is_opened_anew(tmp_path: Path) -> None:
    net = Net(tmp_path, one("10.1.0.0/24"))
    net.add("a")
    net.directory.rename(tmp_path / "aside")
    assert net.ips("a") == ["10.1.0.2/24"]
    assert set(net.files()) == {"10.1.0.2"}


def test_what_a_crash_leaves_harms_nothing(tmp_path: Path) -> None:
    net = Net(tmp_path, one("10.1.0.0/24"))
    net.add("a")
    os.link(net.directory / "10.1.0.2", net.directory / hostlocal._TEMPORARY)
    (net.directory / "last_reserved_ip.0").write_bytes(b"")
    assert net.ips("b") == ["10.1.0.3/24"]
    assert net.files() == {"10.1.0.2": b"a\r\neth0", "10.1.0.3": b"b\r\neth0"}


def test_killed_at_any_moment_it_leaves_no_file_without_owner(tmp_path: Path) -> None:
    net = Net(tmp_path, {"ranges": [[{"subnet": "10.1.0.0/16"}], [{"subnet": "fd00::/64"}]]})
    body = (
        "import json, sys; from cni import hostlocal as h; from cni.types import AttachmentKey\n"
        "conf = json.loads(sys.argv[1])\n"
        "for n in range(100000):\n"
        "    key = AttachmentKey(f'{sys.argv[2]}-{n}', 'eth0')\n"
        "    h.add(h.IpamRequest(key, 'net', conf, {})); n or print(flush=True)\n"
    )
    for turn in range(8):
        command = [sys.executable, "-c", body, json.dumps(net.config), str(turn)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(turn * 0.0037)
            child.kill()
    files = net.files()
    owned = {name: owner for name, owner in files.items() if name[0] in "1f"}
    assert len(owned) > 16
    assert all(owner.endswith(b"\r\neth0") for owner in owned.values())
    for pod in {owner.split(b"\r\n")[0].decode() for owner in owned.values()}:
        net.delete(pod)
    assert set(net.files()) <= {hostlocal._TEMPORARY}


def test_failure_after_the_reservation_takes_it_back(tmp_path: Path) -> None:
    net = Net(tmp_path, one("10.1.0.0/24"))
    net.put("lock", b"")
    (net.directory / "last_reserved_ip.0").mkdir()
    with pytest.raises(IOFailure, match="host-local store"):
        net.add("a")
    assert [p.name for p in net.directory.iterdir() if p.name.startswith(("1", "."))] == []


def test_threads_never_share_an_address(tmp_path: Path) -> None:
    net = Net(tmp_path, one("10.1.0.0/24"))
    barrier = threading.Barrier(8)

    def work(thread: int) -> list[str]:
        barrier.wait()
        return [net.ips(f"t{thread}-{n}")[0] for n in range(25)]

    with ThreadPoolExecutor(8) as pool:
        got = [ip for ips in pool.map(work, range(8)) for ip in ips]
    assert len(set(got)) == 200


def test_many_networks_do_not_exhaust_descriptors(tmp_path: Path) -> None:
    net = Net(tmp_path, one("10.1.0.0/24"))
    for n in range(150):
        request = hostlocal.IpamRequest(AttachmentKey("a", "eth0"), f"n{n}", net.config, {})
        assert hostlocal.add(request).ips[0].address == "10.1.0.2/24"
    assert len(hostlocal._stores) == hostlocal._STORES


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
        hostlocal.status("net", net.config)
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
    request = hostlocal.IpamRequest(AttachmentKey("a", "eth0"), network, net.config, {})
    for verb in (hostlocal.add, hostlocal.delete, hostlocal.check):
        with pytest.raises(BadConfig, match=r"^name: "):
            verb(request)
    assert list(tmp_path.iterdir()) == []


def test_status_tells_of_an_unusable_store_but_not_of_a_full_one(tmp_path: Path) -> None:
    net = Net(tmp_path, one("10.1.0.0/30"))
    net.add("a")
    hostlocal.status("net", net.config)
    (tmp_path / "file").write_text("")
    net.config["ipam"]["dataDir"] = str(tmp_path / "file")
    with pytest.raises(NotReady, match="host-local store"):
        hostlocal.status("net", net.config)
