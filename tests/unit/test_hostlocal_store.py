"""The store of host-local: its files, changes by other processes, crashes and threads."""

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

from cni.errors import AttachmentExists, CheckFailed, IOFailure, NotReady
from cni.ipam.hostlocal import store, verbs
from cni.spec.types import AttachmentKey, Route
from tests.unit.hostlocalkit import Net, one


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


def test_delete_knows_the_old_format_only_when_the_new_one_finds_nothing(tmp_path: Path) -> None:
    net = Net(tmp_path, one("10.1.0.0/24"))
    net.put("10.1.0.50", b"a\n")
    net.put("10.1.0.51", b"a\r\neth0")
    net.delete("a")
    assert set(net.files()) == {"10.1.0.50"}
    verbs.check(net.request("a"))
    net.delete("a")
    assert net.files() == {}
    with pytest.raises(CheckFailed, match="holds no address of a/eth0"):
        verbs.check(net.request("a"))
    net.delete("a")


def test_collect_keeps_valid_and_old_format_and_bookkeeping(tmp_path: Path) -> None:
    net = Net(tmp_path, one("10.1.0.0/24"))
    for pod, ifname in (("keep", "eth0"), ("keep", "eth1"), ("gone", "eth0")):
        net.add(pod, ifname)
    net.put("10.1.0.50", b"keep")
    net.put("10.1.0.51", b"gone")
    net.put("10.1.0.52", b"")
    (net.directory / "10.1.0.53").mkdir()
    net.put("notes.txt", b"gone")
    verbs.collect("net", net.config, [AttachmentKey("keep", "eth0")])
    assert {p.name for p in net.directory.iterdir()} == {
        *("10.1.0.2", "10.1.0.50", "10.1.0.53", "notes.txt", "lock", "last_reserved_ip.0")
    }
    assert net.ips("new") == ["10.1.0.5/24"]


@pytest.mark.parametrize("inotify", [True, False])
def test_changes_by_others_are_seen(
    tmp_path: Path, inotify: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not inotify:
        monkeypatch.setattr(store, "_watch", lambda _directory: -1)
    net = Net(tmp_path, one("10.1.0.0/24"))
    net.add("a")
    net.put("10.1.0.3", b"other\r\neth0")
    (net.directory / "10.1.0.2").write_bytes(b"b\r\neth0")
    with pytest.raises(AttachmentExists):
        net.add("b")
    assert net.ips("a") == ["10.1.0.4/24"]
    (net.directory / "10.1.0.2").unlink()
    assert net.ips("b") == ["10.1.0.5/24"]


def test_more_changes_than_inotify_holds(tmp_path: Path) -> None:
    net = Net(tmp_path, one("10.1.0.0/24"))
    net.add("a")
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for n in range(limit + 1):
        net.put(f"noise{n % 2}", b"")
    for name, pod in (("10.1.0.3", "b"), ("10.1.0.4", "c")):
        net.put(name, f"{pod}\r\neth0".encode())
        with pytest.raises(AttachmentExists):
            net.add(pod)


def test_address_taken_unseen_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(tmp_path, one("10.1.0.0/24"))
    net.add("a")
    monkeypatch.setattr(store.Store, "_changed", lambda _self: set())
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
    os.link(net.directory / "10.1.0.2", net.directory / store._TEMPORARY)
    (net.directory / "last_reserved_ip.0").write_bytes(b"")
    assert net.ips("b") == ["10.1.0.3/24"]
    assert net.files() == {"10.1.0.2": b"a\r\neth0", "10.1.0.3": b"b\r\neth0"}


def test_killed_at_any_moment_it_leaves_no_file_without_owner(tmp_path: Path) -> None:
    net = Net(tmp_path, {"ranges": [[{"subnet": "10.1.0.0/16"}], [{"subnet": "fd00::/64"}]]})
    body = (
        "import json, sys; from cni.ipam.hostlocal import verbs as h\n"
        "from cni.spec.types import AttachmentKey\n"
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
    assert set(net.files()) <= {store._TEMPORARY}


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
        request = verbs.IpamRequest(AttachmentKey("a", "eth0"), f"n{n}", net.config, {})
        assert verbs.add(request).ips[0].address == "10.1.0.2/24"
    assert len(store._stores) == store._STORES


def test_status_tells_of_an_unusable_store_but_not_of_a_full_one(tmp_path: Path) -> None:
    net = Net(tmp_path, one("10.1.0.0/30"))
    net.add("a")
    verbs.status("net", net.config)
    (tmp_path / "file").write_text("")
    net.config["ipam"]["dataDir"] = str(tmp_path / "file")
    with pytest.raises(NotReady, match="host-local store"):
        verbs.status("net", net.config)
