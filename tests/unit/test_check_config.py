"""vmlinkd's settings are looked at before anything is started, and shown on request."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from cni.config.settings import Settings
from cni.daemon import main as daemon


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("NODE_NAME", "n1")
    return tmp_path / "vmlinkd.yaml"


def test_the_settings_are_printed_with_their_defaults(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("workers: 8\npools: {net: {tap: {size: 4}}}\n")
    assert daemon.main(["--check-config", str(file), "--ovs-db", "tcp:127.0.0.1:6640"]) == 0
    said = capsys.readouterr()
    assert yaml.safe_load(said.out) == {
        **asdict(Settings()),
        "workers": 8,
        "ovs": {**asdict(Settings().ovs), "db": "tcp:127.0.0.1:6640"},
        "kubernetes": {"node": "n1", "kubeconfig": ""},
        "pools": {"net": {"tap": {"size": 4, "refill_below": 2}}},
    }
    assert said.err == ""
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("workers: 0", "workers: expected a number from 1 to 256, found 0"),
        ("worker: 4", "worker: unknown key"),
        (
            "kubeovn: {listen: /x, network: {mode: macvtap, ovs: {bridge: br0}}}",
            "kubeovn.network: mode: macvtap does not go with the uplink ovs",
        ),
        ("runtime_classes: {kata: tap}", "kubernetes.kubeconfig: required for runtime_classes"),
    ],
)
@pytest.mark.parametrize("option", ["--check-config", "--config"])
def test_what_is_wrong_is_said_and_nothing_is_made(
    file: Path, capsys: pytest.CaptureFixture[str], option: str, text: str, says: str
) -> None:
    file.write_text(text)
    assert daemon.main([option, str(file), "--run-dir", str(file.parent / "run")]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"vmlinkd: {file}: {says}")
    assert said.out == ""
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_ports_of_kube_ovn_may_be_ovns(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each request has the pod's name, which names the logical port."""
    network = "{mode: tc, ovs: {bridge: br-int, ovn: true}}"
    file.write_text(f"kubeovn: {{listen: /x, network: {network}}}\n")
    daemon.main(["--check-config", str(file)])
    assert "iface-id" not in capsys.readouterr().err
