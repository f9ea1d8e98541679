"""vmlinkctl on made-up records: its tables, its JSON and its errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from cni import __version__
from cni.attach.records import Record, Store
from cni.plugins import ctl


class Told(NamedTuple):
    """How vmlinkctl ended, and what it printed."""

    code: int
    out: str
    err: str


class Call(Protocol):
    """Runs vmlinkctl with the arguments."""

    def __call__(self, *arguments: str) -> Told: ...


DEVICE: dict[str, Any] = {
    "id": "vlt1",
    "kind": "tap",
    "netns": "/run/netns/x",
    "tap": "vlt1",
    "path": "",
    "offload": True,
    "mac": "02:00:00:00:00:01",
    "mtu": 1400,
    "queues": 1,
    "addresses": ["10.0.0.2/24"],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}],
    "ifname": "eth1",
    "neighbours": [],
    "nameservers": [],
    "search": [],
}
TC = Record(
    container_id="c1",
    ifname="eth1",
    network="net",
    mode="tc",
    uplink="linux",
    steps={"prepare": [{"step": "Bridge", "bridge": "br0"}], "bind": [{"step": "Addresses"}]},
    netns_path="/run/netns/x",
    netns_identity=(4, 5),
    stdin="{}",
    env={},
    intent=False,
    facts={"RedirectEngine": {"name": "tcx"}, "Nic": {"mac": DEVICE["mac"], "mtu": 1400}},
    result={
        "interfaces": [{"name": "eth1", "mac": DEVICE["mac"]}],
        "ips": [{"address": "10.0.0.2/24"}, {"address": "fd00::2/64"}],
        "routes": [{"dst": "0.0.0.0/0"}],
    },
    device=DEVICE,
)
TWO_PAIRS = replace(TC, ifname="eth0", device={**DEVICE, "id": "vlt0", "tap": "vlt0", "queues": 2})
VETH = replace(TC, container_id="c2", ifname="eth0", mode="veth", facts={}, device={})
BEGUN = replace(VETH, container_id="c3", intent=True, result={}, mode="tc")
ROWS = {
    ("c1", "eth0"): ["net", "tc", "tcx", DEVICE["mac"], "10.0.0.2/24,fd00::2/64", "attached"],
    ("c1", "eth1"): ["net", "tc", "tcx", DEVICE["mac"], "10.0.0.2/24,fd00::2/64", "attached"],
    ("c2", "eth0"): ["net", "veth", "-", "-", "10.0.0.2/24,fd00::2/64", "attached"],
    ("c3", "eth0"): ["net", "tc", "-", "-", "-", "unfinished"],
}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    store = Store(tmp_path / "state")
    store.create()
    for record in (TC, TWO_PAIRS, VETH, BEGUN):
        store.begin(record)
    return tmp_path


@pytest.fixture
def call(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: str) -> Told:
        code = ctl.main(["--run-dir", str(run_dir), *arguments])
        out, err = capsys.readouterr()
        return Told(code, out, err)

    return run


def test_list(call: Call) -> None:
    code, out, err = call("list")
    head, *lines = [line.split() for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert head == "CONTAINER IFNAME NETWORK MODE REDIRECT MAC ADDRESSES STATE".split()
    assert {tuple(line[:2]): line[2:] for line in lines} == ROWS


def test_nics_are_told_as_attached_and_then_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records of the format before do not tell when."""
    names = {"net10": 0, "net9": 0, "eth2": 3, "eth1": 4, "eth0": 2}
    store = Store(tmp_path / "state")
    store.create()
    for ifname, begun in names.items():
        device = {**DEVICE, "ifname": ifname}
        store.begin(replace(TC, ifname=ifname, begun=begun, device=device))
    expected = ["net9", "net10", "eth0", "eth2", "eth1"]
    for verb in (["list", "--json"], ["show", "c1", "--json"], ["device", "c1"]):
        assert ctl.main(["--run-dir", str(tmp_path), *verb]) == 0
        assert [row["ifname"] for row in json.loads(capsys.readouterr().out)] == expected, verb


def test_columns_are_aligned(call: Call) -> None:
    lines = call("list").out.splitlines()
    last = lines[0].index("STATE")
    assert {line[last - 2 : last] for line in lines} == {"  "}
    assert {line[last:] for line in lines} == {"STATE", "attached", "unfinished"}
    assert not any(line.endswith(" ") for line in lines)


def test_list_for_programs(call: Call) -> None:
    rows = json.loads(call("list", "--json").out)
    assert {(r["container"], r["ifname"]) for r in rows} == set(ROWS)
    assert next(r for r in rows if (r["container"], r["ifname"]) == ("c1", "eth1")) == {
        "container": "c1",
        "ifname": "eth1",
        "network": "net",
        "mode": "tc",
        "redirect": "tcx",
        "mac": DEVICE["mac"],
        "addresses": ["10.0.0.2/24", "fd00::2/64"],
        "state": "attached",
    }


@pytest.mark.parametrize("directory", ["state", "nowhere"])
def test_an_empty_node_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], directory: str
) -> None:
    run_dir = tmp_path / directory
    assert ctl.main(["--run-dir", str(run_dir), "list"]) == 0
    assert capsys.readouterr().out.startswith("CONTAINER")
    assert ctl.main(["--run-dir", str(run_dir), "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_pools(call: Call, run_dir: Path) -> None:
    directory = run_dir / "pool" / "net@tap"
    directory.mkdir(parents=True)
    numbers = ("size", "refill_below", "ready", "made", "given", "returned", "thrown_away")
    pool = {"network": "net", "mode": "tap", **dict.fromkeys(numbers, 0), "error": "no bridge"}
    (directory / "pool.json").write_text(json.dumps({**pool, "conf": {"name": "net"}}))
    assert json.loads(call("pool", "--json").out) == [pool]
    head, line = call("pool").out.splitlines()
    assert head.split() == [name.upper() for name in pool]
    assert line.split() == ["net", "tap", *"0000000", "no", "bridge"]
    (directory / "pool.json").write_text("{")
    assert call("pool").out.splitlines() == [" ".join(head.split()).replace(" ", "  ")]


def test_show_for_programs(call: Call) -> None:
    shown = json.loads(call("show", "c1", "--json").out)
    assert [s["ifname"] for s in shown] == ["eth0", "eth1"]
    assert shown[1]["device"] == DEVICE
    assert shown[1]["netns"] == "/run/netns/x"
    assert [s["step"] for s in shown[1]["steps"]] == ["Bridge", "Addresses"]
    assert shown[1]["interfaces"] == TC.result["interfaces"]
    assert shown[1]["routes"] == TC.result["routes"]


@pytest.mark.parametrize("container", ["c1", "c2", "c3"])
def test_show_for_people(call: Call, container: str) -> None:
    code, out, _ = call("show", container)
    assert code == 0
    assert f"container   {container}\n" in out
    assert out.count("step=Bridge  bridge=br0") == (2 if container == "c1" else 1)
    assert ("tap=vlt0" in out) is (container == "c1")


@pytest.mark.parametrize(
    ("arguments", "ifnames"), [((), ["vlt0", "vlt1"]), (("--ifname", "eth1"), ["vlt1"])]
)
def test_device(call: Call, arguments: tuple[str, ...], ifnames: list[str]) -> None:
    found = json.loads(call("device", "c1", *arguments).out)
    assert [d["id"] for d in found] == ifnames
    assert found[-1] == DEVICE


def test_device_for_qemu(call: Call) -> None:
    first, second = call("device", "c1", "--format", "qemu").out.splitlines()
    assert "fds=3:4" in first
    assert first.endswith(",mq=on")
    assert second.startswith("-netdev tap,id=vlt1,fd=5 -device virtio-net-pci,id=vlt1n,")


def test_device_for_programs_that_want_another_dialect(call: Call) -> None:
    code, out, _ = call("device", "c1", "--ifname", "eth1", "--format", "firecracker")
    assert (code, json.loads(out)["host_dev_name"]) == (0, "vlt1")
    code, out, err = call("device", "c1", "--format", "firecracker")
    assert (code, out) == (1, "")
    assert "set queues to 1" in err


def test_the_device_of_a_former_version_is_read(call: Call, run_dir: Path) -> None:
    old = {k: v for k, v in DEVICE.items() if k not in ("ifname", "neighbours", "search")}
    Store(run_dir / "state").begin(replace(TC, container_id="old", device=old))
    assert json.loads(call("device", "old").out)[0]["neighbours"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "c9"), "c9 is not attached here"),
        (("show", "c"), "c is not attached here"),
        (("device", "c1", "--ifname", "eth9"), "c1/eth9 is not attached here"),
        (("exec", "c9", "--", "true"), "c9 is not attached here"),
        (("device", "c2"), "c2 has no NIC for a VMM"),
        (("device", "c3"), "c3 is being attached"),
        (("exec", "c2", "--", "true"), "c2 has no NIC for a VMM"),
        (("exec", "c1", "--", "true"), "cannot open '/run/netns/x'"),
        (("plug", "c1", "eth9", "--qmp", "/x"), "c1/eth9 is not attached here"),
        (("plug", "c1", "eth1", "--qmp", "/x"), "cannot open '/run/netns/x'"),
        (("unplug", "c1", "eth1", "--qmp", "/x"), "QMP /x: cannot connect"),
        (("unplug", "c1", "eth1", "--api-socket", "/x"), "Cloud Hypervisor at /x: vm.remove"),
    ],
)
def test_errors_go_to_stderr_and_to_the_exit_code(
    call: Call, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("vmlinkctl: ")
    assert message in err


def test_a_record_that_cannot_be_read_is_told(call: Call, run_dir: Path) -> None:
    (run_dir / "state" / "x.json").mkdir()
    code, out, err = call("list")
    assert (code, out) == (1, "")
    assert "cannot read" in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["devour"],
        ["show"],
        ["exec", "c1"],
        ["list", "c1"],
        ["plug", "c1", "eth0"],
        *(["plug", "c1", "eth0", "--qmp", "x", "--timeout", t] for t in ("0", "-1", "nan", "1m")),
    ],
)
def test_usage(call: Call, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        call(*arguments)
    assert stopped.value.code == 2
    assert "usage: vmlinkctl" in capsys.readouterr().err


def test_version(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        call("--version")
    assert stopped.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("records", [1, 2000], ids=["all in the buffer", "more than a pipe takes"])
def test_a_reader_who_goes_away_is_no_error(tmp_path: Path, records: int) -> None:
    store = Store(tmp_path / "state")
    store.create()
    for number in range(records):
        store.begin(replace(TC, container_id=f"c{number}"))
    reader, writer = os.pipe()
    os.close(reader)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "cni.plugins.ctl", "--run-dir", str(tmp_path), "list"]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=env, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
