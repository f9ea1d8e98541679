"""IPAM plugins that vmlinkd executes: Debian's own, and scripts that misbehave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.testbed.node import PLUGINS, Node
from tests.contract.cnikit import attached, config, fails, links, run, script, shown, silent

STATIC: dict[str, Any] = {
    "type": "static",
    "addresses": [
        {"address": "10.9.1.5/24", "gateway": "10.9.1.1"},
        {"address": "fd00:9:1::5/64"},
    ],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.66.0.0/16", "gw": "10.9.1.2"}],
    "dns": {"nameservers": ["10.9.1.53"]},
}


def conf_of(node: Node, ipam: dict[str, Any], **change: Any) -> dict[str, Any]:
    return config(node, cniVersion="1.0.0", ipam=ipam, **change)


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
@pytest.mark.parametrize("mode", ["tc", "veth"])
def test_static(node: Node, pod: Path, version: str, mode: str) -> None:
    conf = {**conf_of(node, STATIC, mode=mode), "cniVersion": version}
    with attached(node, pod, conf) as result:
        assert [ip["address"] for ip in result["ips"]] == ["10.9.1.5/24", "fd00:9:1::5/64"]
        assert {ip["interface"] for ip in result["ips"]} == {0}
        assert result["routes"] == [{"dst": "0.0.0.0/0"}, STATIC["routes"][1]]
        assert result["dns"] == STATIC["dns"]
        on_link = [a for a in shown(node, pod, "eth0")["addr_info"] if a["scope"] == "global"]
        assert {a["local"] for a in on_link} == {"10.9.1.5", "fd00:9:1::5"}
        assert "10.66.0.0/16 via 10.9.1.2" in node.run(["ip", "route"], pod).stdout
        if version != "0.3.1":
            silent(run(node, "CHECK", pod, {**conf, "prevResult": result}))
    assert links(pod) == {"lo"}


def test_static_knows_no_newer_version(node: Node, pod: Path) -> None:
    """The plugin's own error code and message reach the caller."""
    fails(run(node, "ADD", pod, config(node, ipam=STATIC)), 1, "incompatible CNI versions")
    assert links(pod) == {"lo"}


def test_host_local_executed_shares_the_store(node: Node, pod: Path, tmp_path: Path) -> None:
    (tmp_path / "real").symlink_to(PLUGINS / "host-local")
    conf = conf_of(node, {**node.ipam("10.9.0.0/24"), "type": "real"})
    path = {"CNI_PATH": f"/nonexistent:{tmp_path}"}
    result = run(node, "ADD", pod, conf, **path).expect()
    own = node.pod()
    inside = run(node, "ADD", own, conf_of(node, node.ipam("10.9.0.0/24")), CNI_CONTAINERID="c2")
    assert inside.expect()["ips"][0]["address"] != result["ips"][0]["address"]
    # Each releases the address that the other gave.
    silent(run(node, "DEL", own, conf, CNI_CONTAINERID="c2", **path))
    silent(run(node, "DEL", pod, conf, **path))
    node.lab.drop(own)


@pytest.mark.parametrize("path", ["{bin}", "", "relative", "{bin}:/nonexistent"])
def test_missing_plugin(node: Node, pod: Path, tmp_path: Path, path: str) -> None:
    script(tmp_path / "bin", "other", "exit 0")
    (tmp_path / "bin" / "away").write_text("not executable")
    answer = run(
        node,
        "ADD",
        pod,
        conf_of(node, {"type": "away"}),
        CNI_PATH=path.format(bin=tmp_path / "bin"),
    )
    fails(answer, 7, "ipam.type", "away", "CNI_PATH")
    assert links(pod) == {"lo"}


def added(result: str) -> str:
    return f"case $CNI_COMMAND in ADD) {result};; *) ;; esac"


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ('echo \'{"cniVersion":"1.0.0","code":42,"msg":"no luck"}\'; exit 1', 42, ["no luck"]),
        ('echo \'{"code":11,"msg":"later","details":"d"}\'; exit 1', 11, ["later"]),
        ("echo oops >&2; exit 3", 103, ["plugin", "ended with 3"]),
        ("kill -KILL $$", 103, ["plugin", "signal 9"]),
        ("echo no JSON", 103, ["plugin"]),
        ("true", 103, ["plugin"]),
        ("echo '{}'", 103, ["plugin"]),
        ('echo \'{"cniVersion":"1.0.0","ips":[{"address":"x"}]}\'', 103, ["ips[0]"]),
        ("head -c 5000000 /dev/zero", 103, ["plugin", "4 MiB"]),
    ],
)
def test_plugin_that_fails(
    node: Node, pod: Path, tmp_path: Path, body: str, code: int, words: list[str]
) -> None:
    calls = tmp_path / "calls"
    script(tmp_path, "plugin", f"echo $CNI_COMMAND >>{calls}\n{added(body)}")
    conf = conf_of(node, {"type": "plugin"})
    fails(run(node, "ADD", pod, conf, CNI_PATH=str(tmp_path)), code, *words)
    assert links(pod) == {"lo"}
    assert calls.read_text().split()[-1] == "DEL"


GOOD = 'echo \'{"cniVersion":"1.0.0","ips":[{"address":"10.9.2.2/24"}]}\''


def test_what_the_plugin_is_given(node: Node, pod: Path, tmp_path: Path) -> None:
    script(tmp_path, "plugin", f"env >{tmp_path}/$CNI_COMMAND.env; cat >{tmp_path}/stdin\n{GOOD}")
    conf = conf_of(node, {"type": "plugin", "own": ["key"]}, runtimeConfig={"some": "thing"})
    env = {"CNI_PATH": str(tmp_path), "CNI_ARGS": "K8S_POD_NAME=a"}
    run(node, "ADD", pod, conf, **env).expect()
    silent(run(node, "DEL", pod, conf, **env))
    for verb in ("ADD", "DEL"):
        lines = (tmp_path / f"{verb}.env").read_text().splitlines()
        given = dict(line.split("=", 1) for line in lines)
        assert {k: given[k] for k in given if k.startswith("CNI_")} == {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": "c1",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": str(pod),
            **env,
        }
        assert given["PATH"]
    assert b'"own": ["key"]' in (tmp_path / "stdin").read_bytes()


def test_del_that_fails_finishes_our_own_work_first(node: Node, pod: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    refusal = 'echo \'{"code":42,"msg":"not now"}\'; exit 1'
    script(
        tmp_path,
        "plugin",
        f"[ $CNI_COMMAND != DEL ] || [ ! -e {broken} ] || {{ {refusal}; }}\n{GOOD}",
    )
    conf = conf_of(node, {"type": "plugin"})
    run(node, "ADD", pod, conf, CNI_PATH=str(tmp_path)).expect()
    broken.touch()
    fails(run(node, "DEL", pod, conf, CNI_PATH=str(tmp_path)), 42, "not now")
    assert links(pod) == {"lo"}
    broken.unlink()
    silent(run(node, "DEL", pod, conf, CNI_PATH=str(tmp_path)))


def test_check_of_the_plugin_is_heard(node: Node, pod: Path, tmp_path: Path) -> None:
    refusal = 'echo \'{"code":42,"msg":"not mine"}\'; exit 1'
    script(tmp_path, "plugin", f"[ $CNI_COMMAND != CHECK ] || {{ {refusal}; }}\n{GOOD}")
    conf = conf_of(node, {"type": "plugin"})
    result = run(node, "ADD", pod, conf, CNI_PATH=str(tmp_path)).expect()
    checked = {**conf, "prevResult": result}
    fails(run(node, "CHECK", pod, checked, CNI_PATH=str(tmp_path)), 42, "not mine")
    silent(run(node, "DEL", pod, conf, CNI_PATH=str(tmp_path)))


@pytest.mark.parametrize("verb", ["GC", "STATUS"])
def test_gc_and_status_are_forwarded(node: Node, tmp_path: Path, verb: str) -> None:
    refusal = f'echo \'{{"code":51,"msg":"{verb} refused"}}\'; exit 1'
    script(
        tmp_path, "plugin", f"cat >{tmp_path}/stdin; [ ! -e {tmp_path}/bad ] || {{ {refusal}; }}"
    )
    conf = config(node, ipam={"type": "plugin"}, **{"cni.dev/valid-attachments": []})
    silent(node.call(verb, conf, CNI_PATH=str(tmp_path)))
    assert b"cni.dev/valid-attachments" in (tmp_path / "stdin").read_bytes()
    (tmp_path / "bad").touch()
    answer = node.call(verb, conf, CNI_PATH=str(tmp_path))
    fails(answer, 51 if verb == "STATUS" else 100, f"{verb} refused")
