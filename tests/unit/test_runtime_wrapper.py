"""How vmlink-hook reads an OCI runtime's command line, a bundle and a container's state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cni.errors import VmlinkError
from cni.plugins import oci, runtime_wrapper

HOOK = ["/opt/vmlink-hook", "--mode", "tc"]


@pytest.mark.parametrize(
    ("arguments", "bundle"),
    [
        ("create --bundle /b c1", "/b"),
        ("create --bundle=/b c1", "/b"),
        ("create -b /b --pid-file /p c1", "/b"),
        ("create --pid-file /p c1", "."),
        ("run -b=/b c1", "/b"),
        ("--root /r --log /l --log-format json create --bundle /b c1", "/b"),
        ("--root=/r --systemd-cgroup create --bundle /b c1", "/b"),
        ("--root create create --bundle /b c1", "/b"),
        ("--root create delete --bundle /b c1", None),
        ("--log run state c1", None),
        ("start c1", None),
        ("delete --force create", None),
        ("--version", None),
        ("--root", None),
        ("", None),
    ],
)
def test_the_bundle_of_a_command_line(arguments: str, bundle: str | None) -> None:
    found = runtime_wrapper.bundle_of(arguments.split())
    assert found == (None if bundle is None else Path(bundle))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def test_the_hook_is_added_beside_others_and_once(config: Path) -> None:
    other = {"path": "/bin/other"}
    first = {"ociVersion": "1.0.2", "hooks": {"poststop": [other], "poststart": [other]}}
    config.write_text(json.dumps(first))
    config.chmod(0o640)
    runtime_wrapper.add_hooks(config, HOOK)
    once = config.read_bytes()
    runtime_wrapper.add_hooks(config, HOOK)
    assert config.read_bytes() == once
    assert config.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in config.parent.iterdir()] == ["config.json"]
    hooks = json.loads(once)["hooks"]
    ours = {s: {"path": HOOK[0], "args": [*HOOK, s], "timeout": 60} for s in runtime_wrapper.STAGES}
    assert hooks == {
        "createRuntime": [ours["createRuntime"]],
        "poststop": [other, ours["poststop"]],
        "poststart": [other],
    }


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        '{"hooks": []}',
        '{"hooks": {"createRuntime": 1, "poststop": "x"}}',
        '{"annotations": {"io.kubernetes.cri.container-type": "container"}}',
        '{"annotations": {"io.kubernetes.cri-o.ContainerType": "container"}}',
    ],
)
def test_what_the_runtime_will_refuse_and_containers_of_a_pod_are_passed_on(
    config: Path, text: str
) -> None:
    config.write_text(text)
    runtime_wrapper.add_hooks(config, HOOK)
    assert config.read_text() == text


def test_no_bundle_is_the_runtimes_error(config: Path) -> None:
    runtime_wrapper.add_hooks(config, HOOK)
    assert not config.exists()


def test_a_runtime_that_is_not_there() -> None:
    with pytest.raises(VmlinkError, match="cannot execute /no/runc: No such file"):
        runtime_wrapper.execute(["/no/runc", "--version"], HOOK)


def bundle(config: Path, namespaces: Any, **rest: Any) -> dict[str, Any]:
    config.write_text(json.dumps({"linux": {"namespaces": namespaces}, **rest}))
    return {"id": "c1", "pid": 7, "bundle": str(config.parent)}


@pytest.mark.parametrize(
    ("namespaces", "netns"),
    [
        ([{"type": "pid"}, {"type": "network", "path": "/run/netns/x"}], "/run/netns/x"),
        ([{"type": "network"}], "/proc/7/ns/net"),
        ([{"type": "network", "path": ""}], "/proc/7/ns/net"),
        ([{"type": "pid"}], ""),
        ([], ""),
        (None, ""),
        (["odd", {"type": "network", "path": "/run/netns/x"}], "/run/netns/x"),
    ],
)
def test_the_namespace_of_a_bundle(config: Path, namespaces: Any, netns: str) -> None:
    assert oci.container(bundle(config, namespaces)).netns == netns


@pytest.mark.parametrize("path", ["relative", 7, ["x"], "/nul\0"])
def test_a_namespace_that_is_no_path_is_refused(config: Path, path: Any) -> None:
    state = bundle(config, [{"type": "network", "path": path}])
    with pytest.raises(VmlinkError, match=r"linux\.namespaces: path: expected an absolute path"):
        oci.container(state)


@pytest.mark.parametrize("odd", ["/nowhere", "relative", "", None, 7, "/nul\0"])
def test_without_a_bundle_the_pid_tells(odd: Any) -> None:
    assert oci.container({"id": "c1", "pid": 7, "bundle": odd}).netns == "/proc/7/ns/net"


@pytest.mark.parametrize("name", ["../x", "a/b", "", "-a", "a" * 201, "a\n", None, 7])
def test_an_id_that_is_no_file_name_is_refused(name: Any) -> None:
    with pytest.raises(VmlinkError, match="state: id: "):
        oci.container({"id": name, "pid": 7})


def test_annotations_of_the_state_come_before_the_bundles(config: Path) -> None:
    state = bundle(config, [], annotations={"vmlink.mode": "tc", "a": "1"})
    state["annotations"] = {"vmlink.mode": "macvtap", "n": 1}
    found = oci.container(state).annotations
    assert found == {"vmlink.mode": "macvtap", "a": "1", "n": "1"}


@pytest.mark.parametrize("odd", [None, [], "text"])
def test_odd_annotations_are_none(config: Path, odd: Any) -> None:
    assert oci.container(bundle(config, [], annotations=odd)).annotations == {}
