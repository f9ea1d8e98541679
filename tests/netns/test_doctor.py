"""`vmlinkctl doctor` on a node, and the tiny guest by which it tries KVM."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from bench.testbed import guest as guests
from bench.testbed.node import Node
from cni.errors import NotReady
from cni.modes import MODES
from cni.vmm import descriptors, kvm


def doctor(node: Node, *what: str) -> tuple[int, list[dict[str, Any]], str]:
    db = f"unix:{node.run_dir}/no-ovsdb.sock"
    command = node.ctl("doctor", "--json", "--ovs-db", db, *what)
    done = node.run(command, check=False)
    return done.returncode, json.loads(done.stdout or "[]"), done.stderr


def test_modes_and_what_is_missing(node: Node) -> None:
    code, found, said = doctor(node)
    ok = {(f["name"], f["uplink"]): f["ok"] for f in found}
    pairs = {(mode, uplink) for mode in MODES for uplink in MODES[mode].rules.uplinks}
    assert pairs < set(ok)
    assert ok["tc", "linux"]
    assert ok["tc", "chained"]
    assert ok["vmlinkd", ""]
    reasons = {(f["name"], f["uplink"]): f["reason"] for f in found if not f["ok"]}
    assert "is ovsdb-server running? (the package openvswitch-switch" in reasons["tc", "ovs"]
    assert code == 1
    assert "vhostuser" in said  # whose only uplink is ovs
    assert "tc," not in said  # which works on other uplinks


def test_the_exit_code_is_of_what_was_asked_for(node: Node) -> None:
    assert doctor(node, "tc", "vmlinkd")[0] == 0
    code, found, said = doctor(node, "tc", "vhostuser")
    assert (code, {f["name"] for f in found}) == (1, {"tc", "vhostuser"})
    assert said == "vmlinkctl: cannot be used here: vhostuser\n"


def test_a_table_for_people(node: Node) -> None:
    lines = node.run(node.ctl("doctor", "tap", "vmlinkd", "--ovs-db", "unix:/no")).stdout
    assert lines.splitlines()[0].split() == ["tap", "linux", "ok"]
    assert lines.splitlines()[1].split()[:3] == ["tap", "ovs", "no"]


def test_vmlinkd_is_away(node: Node) -> None:
    command = [*node.ctl()[:1], "--run-dir", "/nowhere", "doctor", "vmlinkd"]
    done = node.run(command, check=False)
    assert done.returncode == 1
    assert "nobody listens at /nowhere/vmlinkd.sock" in done.stdout


def test_a_macvtap_needs_a_nic_that_is_up(node: Node) -> None:
    (found,) = [f for f in doctor(node, "macvtap")[1] if f["uplink"] == "master"]
    assert "no interface of this node is up" in found["reason"]
    node.run("ip link add nic type veth peer name far".split())
    try:
        node.run("ip link set nic up".split())
        assert [f["ok"] for f in doctor(node, "macvtap")[1] if f["uplink"] == "master"] == [True]
    finally:
        node.run("ip link del nic".split())


def test_vhost_net_is_opened(node: Node) -> None:
    code, [found], _ = doctor(node, "vhost-net")
    if said := descriptors.vhost_refusal():
        assert code == 1
        assert found["reason"].startswith(f"/dev/vhost-net cannot be opened ({said}), so ")
    else:
        assert (code, found["reason"]) == (0, "")


@pytest.mark.parametrize("what", ["everything", "TC"])
def test_unknown_words_are_named(node: Node, what: str) -> None:
    code, found, said = doctor(node, what)
    assert (code, found) == (1, [])
    assert f"'{what}': expected one of tc, " in said


def test_kvm_is_judged_as_a_whole_guest_judges_it() -> None:
    if not Path(kvm.DEVICE).exists():
        pytest.skip(f"{kvm.DEVICE} is missing: there is nothing to judge")
    if guests.accelerator() == "kvm":
        kvm.ready()
    else:
        with pytest.raises(NotReady, match="/dev/kvm opens, but a guest in 64-bit mode did"):
            kvm.ready()


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ("print(0.001, 5)", ""),
        ("print(0.1, 5)", "10.0 million instructions a second: they are interpreted"),
        ("print(0.001, 8)", "left by exit reason 8 instead of its hlt"),
        ("raise SystemExit('[Errno 16] busy')", "but [Errno 16] busy; give QEMU -accel tcg"),
        ("import time; time.sleep(99)", "did not end in 0.5 s"),
    ],
)
def test_what_the_probe_saw(
    printed: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = tmp_path / "probe"
    probe.write_text(f"#!{sys.executable}\n{printed}\n")
    probe.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(probe))
    monkeypatch.setattr(kvm, "DEVICE", os.devnull)
    monkeypatch.setattr(kvm, "_SECONDS", 0.5)
    with pytest.raises(NotReady, match=re.escape(reason)) if reason else nullcontext():
        kvm.ready()


def test_no_kvm_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "DEVICE", "/dev/no-kvm")
    with pytest.raises(NotReady, match="/dev/no-kvm is missing; load kvm_intel or kvm_amd"):
        kvm.ready()
