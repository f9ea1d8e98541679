"""The kernel lab before it boots: which kernel is meant, and from where it comes."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from bench.testbed.kernel_lab import initramfs, kernels, machine
from bench.testbed.kernel_lab.kernels import KernelError

OFFERED = """
linux-image-6.1.0-9-amd64 linux-image-6.1.0-56-amd64 linux-image-6.12.107+deb13-amd64
linux-image-6.12.9+deb13-amd64 linux-image-7.2.13+deb14-amd64 linux-image-6.1.0-57-cloud-amd64
linux-image-6.1.0-57-rt-amd64 linux-image-6.1.0-57-amd64-unsigned linux-image-amd64
linux-image-7.3.1+deb14-amd64-dbg linux-image-cloud-amd64
"""


def offer(monkeypatch: pytest.MonkeyPatch, kernel: Path) -> list[str]:
    """Let apt offer these, and return the list of what is fetched."""
    fetched: list[str] = []
    monkeypatch.setattr(kernels, "KERNELS", kernel)
    monkeypatch.setattr(kernels, "_update", lambda: "\nthe mirror is away")
    monkeypatch.setattr(kernels, "_run", lambda *argv, cwd=None: OFFERED)
    monkeypatch.setattr(kernels, "_fetch", lambda release, home: fetched.append(release))
    return fetched


@pytest.mark.parametrize(
    ("wanted", "release"),
    [
        ("6.1", "6.1.0-56-amd64"),
        ("6.1.0-9", "6.1.0-9-amd64"),
        ("6.12", "6.12.107+deb13-amd64"),
        ("6", "6.12.107+deb13-amd64"),
        ("newest", "7.2.13+deb14-amd64"),
    ],
)
def test_the_newest_that_fits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: str, release: str
) -> None:
    fetched = offer(monkeypatch, tmp_path)
    assert kernels.find(wanted).home == tmp_path / release
    assert fetched == [release]


def test_a_kernel_in_the_cache_is_not_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fetched = offer(monkeypatch, tmp_path)
    (tmp_path / "6.1.0-9-amd64").mkdir()
    (tmp_path / "6.1.0-9-amd64" / "vmlinuz").touch()
    assert kernels.find("6.1").home.name == "6.1.0-9-amd64"
    assert fetched == []


def test_no_such_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offer(monkeypatch, tmp_path)
    with pytest.raises(KernelError, match=r"(?s)no kernel 5.10.*the mirror is away"):
        kernels.find("5.10")


def test_the_next_releases_come_from_this_ones_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "http://m/debian/ bookworm main\nhttp://s/debian-security/ bookworm-security main\n"
    rows += "http://other/ nodistro main\n"
    monkeypatch.setattr(kernels, "_run", lambda *argv, cwd=None: rows)
    codename = {"VERSION_CODENAME": "bookworm"}
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: codename)
    made = [line.split("] ")[1] for line in kernels._sources().splitlines()]
    assert made[:2] == rows.splitlines()[:2]
    assert made[2:] == [f"http://m/debian/ {name} main" for name in kernels.NEXT_RELEASES]


def test_the_guest_has_no_network_and_writes_only_its_share(tmp_path: Path) -> None:
    argv = machine._arguments(kernels.Kernel(tmp_path), tmp_path / "share")
    assert "-nodefaults" in argv
    assert not {"-nic", "-net", "-netdev"} & set(argv)
    assert [word for word in argv if "net-pci" in word] == []
    shared = [word for word in argv if word.startswith("local,")]
    (writable,) = (word for word in shared if "readonly=on" not in word)
    assert f"path={tmp_path}/share," in writable


def test_the_command_runs_where_it_was_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(initramfs, "build", lambda kernel: b"")
    machine._fill(tmp_path, kernels.Kernel(tmp_path), ["sh", "-c", "exit 3"])
    assert (tmp_path / "command").read_text() == "exec sh -c 'exit 3'\n"
    environment = (tmp_path / "environment").read_text()
    assert f"cd {Path.cwd()}\n" in environment
    assert "VMLINK_SLOWNESS=8\n" in environment
    assert os.access(tmp_path / "guest.sh", os.R_OK)
