"""vmlinkctl install and uninstall, and the DaemonSet that calls it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bench.testbed.node import BIN
from cni.attach.records import Store
from cni.plugins import ctl as command
from tests.unit.test_ctl import TC

CONF = Path(__file__).parents[2] / "conf"
DEFAULT = {
    "/etc/cni/net.d/10-vmlink-linux.conflist",
    "/etc/containers/oci/hooks.d/vmlink-createRuntime.json",
    "/etc/containers/oci/hooks.d/vmlink-poststop.json",
    "/etc/systemd/system/multi-user.target.wants/vmlinkd.service",
    "/etc/systemd/system/sockets.target.wants/vmlinkd.socket",
    "/etc/systemd/system/vmlinkd.service",
    "/etc/systemd/system/vmlinkd.socket",
    "/etc/vmlink/vmlinkd.yaml",
    "/opt/cni/bin/vmlink",
}
MANIFEST = "/var/lib/vmlink/installed.json"
PLACE = "/opt/vmlink/bin"  # that of these tests may be below /root


def contents(root: Path) -> dict[str, bytes | None]:
    """Files with their contents, links with their targets, and directories."""
    found = (p for p in root.rglob("*"))
    return {f"/{p.relative_to(root)}": content(p) for p in found}


def content(path: Path) -> bytes | None:
    if path.is_symlink():
        return bytes(path.readlink())
    return path.read_bytes() if path.is_file() else None


Ctl = Callable[..., list[str]]


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ctl:
    """Run vmlinkctl in this process; return the lines of its stdout and stderr."""
    monkeypatch.setattr(sys, "argv", [str(BIN / "vmlinkctl")])

    def run(verb: str, root: Path, *arguments: str, code: int = 0) -> list[str]:
        place = ["--bin-dir", PLACE] if verb == "install" else []
        found = command.main([verb, "--root", str(root), *place, *arguments])
        said = "".join(capsys.readouterr())
        assert found == code, said
        return said.splitlines()

    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root directory with another plugin's file in one of the places."""
    (tmp_path / "etc/cni/net.d").mkdir(parents=True)
    (tmp_path / "etc/cni/net.d/99-other.conflist").write_text("{}")
    return tmp_path


def test_all_is_put_in_place_and_taken_back(ctl: Ctl, root: Path) -> None:
    before = contents(root)
    ctl("install", root)
    put = contents(root)
    assert {p for p, data in put.items() if data is not None} - {*before} == DEFAULT | {MANIFEST}
    client = root / "opt/cni/bin/vmlink"
    assert client.read_bytes() == (BIN / "vmlink").read_bytes()
    assert client.stat().st_mode & 0o777 == 0o755
    unit = put["/etc/systemd/system/vmlinkd.service"] or b""
    assert f"ExecStart={PLACE}/vmlinkd ".encode() in unit
    for name in ("createRuntime", "poststop"):
        hook = json.loads(put[f"/etc/containers/oci/hooks.d/vmlink-{name}.json"] or b"")
        assert hook["hook"]["path"] == f"{PLACE}/vmlink-hook"
    ctl("uninstall", root)
    assert contents(root) == before


def test_again_it_changes_nothing(ctl: Ctl, root: Path) -> None:
    ctl("install", root)
    put = contents(root)
    assert {line.split()[0] for line in ctl("install", root)} == {"unchanged"}
    assert contents(root) == put


def test_a_dry_run_only_says(ctl: Ctl, root: Path) -> None:
    before = contents(root)
    assert {line.split()[1] for line in ctl("install", root, "--dry-run")} == {
        str(root) + path for path in DEFAULT
    }
    assert contents(root) == before
    ctl("install", root)
    put = contents(root)
    assert {line.split()[0] for line in ctl("uninstall", root, "--dry-run")} == {"removed"}
    assert contents(root) == put


def test_parts_and_places(ctl: Ctl, root: Path) -> None:
    conflist = root / "30-mine.conflist"
    shutil.copy(CONF / "10-vmlink-ovs.conflist", conflist)
    options = ["--conflist", str(conflist), "--cni-bin-dir", "/usr/lib/cni"]
    ctl("install", root, "client", "network", *options, "--cni-conf-dir", "/net.d")
    assert (root / "usr/lib/cni/vmlink").is_file()
    assert (root / "net.d/30-mine.conflist").read_bytes() == conflist.read_bytes()
    assert not (root / "etc/systemd").exists()


def test_what_was_changed_since_is_left_and_named(ctl: Ctl, root: Path) -> None:
    ctl("install", root)
    settings = root / "etc/vmlink/vmlinkd.yaml"
    settings.write_text("workers: 3\n")
    assert f"kept      {settings}" in ctl("install", root)
    assert f"changed   {settings}" in ctl("uninstall", root)
    assert settings.read_text() == "workers: 3\n"
    assert not (root / "etc/systemd").exists()


def test_what_is_of_an_older_version_is_replaced(ctl: Ctl, root: Path) -> None:
    ctl("install", root, "client", "--bin-dir", "/old")
    ctl("install", root, "units", "--bin-dir", "/old")
    unit = root / "etc/systemd/system/vmlinkd.service"
    assert f"update    {unit}" in ctl("install", root, "units", "--bin-dir", "/new")
    assert "ExecStart=/new/vmlinkd" in unit.read_text()
    assert f"removed   {unit}" in ctl("uninstall", root)


LINKS = (
    "multi-user.target.wants/vmlinkd.service",
    "sockets.target.wants/vmlinkd.socket",
)


def test_service_and_socket_are_enabled(ctl: Ctl, root: Path) -> None:
    units = root / "etc/systemd/system"
    ctl("install", root)
    enabled = {name: str((units / name).readlink()) for name in LINKS}
    assert enabled == {name: f"/etc/systemd/system/{name.split('/')[1]}" for name in LINKS}
    if not shutil.which("systemctl"):
        pytest.skip("systemctl is missing (the package systemd)")
    # As systemctl(1) itself has it.
    for name in ("vmlinkd.service", "vmlinkd.socket"):
        asked = ["systemctl", f"--root={root}", "is-enabled", name]
        said = subprocess.run(asked, capture_output=True, text=True, check=True)
        assert said.stdout.strip() == "enabled"
    subprocess.run(["systemctl", f"--root={root}", "disable", "vmlinkd.service"], check=True)
    ctl("install", root)
    assert [(units / name).is_symlink() for name in LINKS] == [False, False]


def test_links_of_systemctl_are_taken_over(ctl: Ctl, root: Path) -> None:
    before = contents(root)
    units = root / "etc/systemd/system"
    for name in LINKS:
        (units / name).parent.mkdir(parents=True)
        (units / name).symlink_to(f"/etc/systemd/system/{name.split('/')[1]}")
    ctl("install", root)
    ctl("uninstall", root)
    assert {path for path, data in contents(root).items() if data is not None} == {
        path for path, data in before.items() if data is not None
    }


@pytest.mark.parametrize("place", ["/root/venv/bin", "/home/me/.local/bin", "/run/user/0/bin"])
def test_where_the_unit_would_not_see_it_nothing_is_installed(
    ctl: Ctl, root: Path, place: str
) -> None:
    before = contents(root)
    (line,) = ctl("install", root, "--bin-dir", place, code=1)
    assert f"--bin-dir: {place}/vmlinkd is below a home directory, which ProtectHome=" in line
    assert contents(root) == before
    ctl("install", root, "client", "network", "hooks", "--bin-dir", place)


def test_uninstall_warns_of_pods(ctl: Ctl, root: Path) -> None:
    ctl("install", root)
    assert all(line.startswith("removed") for line in ctl("uninstall", root))
    ctl("install", root)
    store = Store(root / "run/vmlink/state")
    store.create()
    for container in ("c1", "c2"):
        store.begin(replace(TC, container_id=container))
    warnings = [line for line in ctl("uninstall", root) if line.startswith("warning: ")]
    (warning,) = warnings
    assert re.match("warning: 2 attachments of this node live, as c[12]/eth1; ", warning)


def test_a_file_of_somebody_else_is_not_touched(ctl: Ctl, root: Path) -> None:
    (root / "opt/cni/bin").mkdir(parents=True)
    (root / "opt/cni/bin/vmlink").write_text("theirs")
    before = contents(root)
    (line,) = ctl("install", root, code=1)
    assert "opt/cni/bin/vmlink is there and is not vmlink's" in line
    assert contents(root) == before


def test_an_install_that_fails_half_way_leaves_nothing(ctl: Ctl, root: Path) -> None:
    hooks = root / "etc/containers/oci/hooks.d"
    (hooks / f".vmlink-poststop.json.{os.getpid()}").mkdir(
        parents=True
    )  # in the way of the last file's temporary copy
    before = contents(root)
    assert "cannot write" in ctl("install", root, code=1)[-1]
    assert contents(root) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--root", "/nowhere"], "--root: /nowhere is not a directory"),
        (["everything"], "'everything': expected one of client, network, units, hooks"),
        (["--conflist", "/nowhere"], "cannot read /nowhere"),
        (["--conflist", str(CONF / "vmlinkd.yaml")], "is not a list of plugins"),
        (["--unit-dir", "units"], "units: expected an absolute path"),
        (["--unit-dir", "/a/../.."], "without '..'"),
    ],
)
def test_errors(ctl: Ctl, root: Path, arguments: list[str], says: str) -> None:
    before = contents(root)
    (line,) = ctl("install", root, *arguments, code=1)
    assert says in line
    assert contents(root) == before


def test_nothing_to_take_back(ctl: Ctl, root: Path) -> None:
    (line,) = ctl("uninstall", root, code=1)
    assert "nothing is installed" in line


def test_the_daemonset_fits_the_programs(ctl: Ctl, root: Path) -> None:
    config, daemonset = yaml.safe_load_all((CONF / "daemonset.yaml").read_text())
    pod = daemonset["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in (*pod["initContainers"], *pod["containers"]):
        assert (BIN / container["command"][0]).exists()
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    (install,) = pod["initContainers"]
    for name, text in config["data"].items():
        (root / name).write_text(text)
    words = [*install["command"][2:], *install["args"]]
    places = {"/host": str(root), "/etc/vmlink/10-vmlink.conflist": f"{root}/10-vmlink.conflist"}
    ctl("install", root, *(places.get(word, word) for word in words))
    mounted = [mount["mountPath"] for mount in install["volumeMounts"]]
    files = json.loads((root / MANIFEST.lstrip("/")).read_text())["files"]
    assert {f"/host{Path(path).parent}" for path in (*files, MANIFEST)} <= {*mounted}
    vmlinkd = [str(BIN / "vmlinkd"), "--config", str(root / "vmlinkd.yaml")]
    done = subprocess.run([*vmlinkd, "--run-dir", "/dev/null"], capture_output=True, text=True)
    assert "/dev/null" in done.stderr  # the settings were accepted; /dev/null is no directory
