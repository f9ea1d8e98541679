"""Executed IPAM plugins: how they are found, called and killed, and how they answer."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from cni.errors import BadConfig, DeadlineExceeded, IpamFailed, NotReady
from cni.ipam import delegate
from cni.spec.types import IP, AttachmentKey, Result, Route
from tests.unit.purekit import descriptors
from tests.waits import until

ANSWER = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0"}],
    "ips": [{"address": "10.1.0.9/24", "gateway": "10.1.0.1", "interface": 0}],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["192.0.2.3"]},
}


class Script(Protocol):
    """Writes an IPAM plugin `fake` with a body in Python, and returns a Call that executes it."""

    def __call__(
        self, body: str, stdin: bytes = ..., version: str = ..., **env: str
    ) -> delegate.Call: ...


@pytest.fixture
def script(tmp_path: Path) -> Script:
    def make(body: str, stdin: bytes = b"{}", version: str = "1.0.0", **env: str) -> delegate.Call:
        path = tmp_path / "fake"
        path.write_text(f"#!{sys.executable} -IS\nimport json, os, sys\n{body}\n")
        path.chmod(0o755)
        config: dict[str, Any] = {"cniVersion": version, "ipam": {"type": "fake"}}
        env = {"CNI_PATH": f"/none:{tmp_path}", "CNI_NETNS": "/ns", "HOME": "/secret", **env}
        return delegate.Call("net", config, env, stdin, AttachmentKey("pod", "eth0"))

    return make


def says(answer: Any) -> str:
    return f"sys.stdout.write({json.dumps(answer)!r})"


def gone(pid: int) -> bool:
    """Whether the process has ended; init may not have reaped it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_result_is_passed_on_without_interfaces(script: Script) -> None:
    wait = delegate.begin_add(script(says(ANSWER)))
    expected = Result(
        ips=(IP("10.1.0.9/24", "10.1.0.1"),),
        routes=(Route("0.0.0.0/0"),),
        dns={"nameservers": ["192.0.2.3"]},
    )
    assert wait(10) == expected
    assert wait(0) == expected


def test_it_gets_cni_variables_path_and_all_of_a_large_stdin(
    script: Script, tmp_path: Path
) -> None:
    out = tmp_path / "seen"
    stdin = b"x" * (1 << 20)
    body = (
        f"fds = sorted(os.listdir('/proc/self/fd'))\n"
        f"seen = [dict(os.environ), len(sys.stdin.read()), len(fds), os.getsid(0) == os.getpid()]\n"
        f"open({str(out)!r}, 'w').write(json.dumps(seen))\n"
        f"sys.stderr.write('y' * {1 << 20})"
    )
    delegate.delete(script(body, stdin, CNI_COMMAND="ADD", CNI_ARGS="A=b"))
    env, length, fds, own_session = json.loads(out.read_text())
    env.pop("LC_CTYPE", None)
    assert env == {
        "CNI_COMMAND": "DEL",
        "CNI_ARGS": "A=b",
        "CNI_NETNS": "/ns",
        "CNI_PATH": f"/none:{tmp_path}",
        "PATH": os.environ["PATH"],
    }
    assert length == len(stdin)
    assert fds == 4, "expected stdin, stdout, stderr and the directory that it lists"
    assert own_session


def test_add_runs_while_the_caller_works(script: Script, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    wait = delegate.begin_add(script(f"open({str(mark)!r}, 'w').close()\n{says(ANSWER)}"))
    until(mark.exists)
    assert wait(10).ips[0].address == "10.1.0.9/24"


def test_a_plugin_that_hangs_is_killed_with_its_children(script: Script, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    body = (
        "import time\nother = os.fork()\n"
        f"if other:\n    open({str(pids)!r} + '.new', 'w').write(f'{{os.getpid()}} {{other}}')\n"
        f"    os.rename({str(pids)!r} + '.new', {str(pids)!r})\ntime.sleep(600)"
    )
    wait = delegate.begin_add(script(body))
    until(pids.exists)
    with pytest.raises(DeadlineExceeded, match=r"fake ADD took longer than 0.05 s"):
        wait(0.05)
    for pid in map(int, pids.read_text().split()):
        until(partial(gone, pid))
    with pytest.raises(DeadlineExceeded):
        wait(10)


def test_delete_ends_an_add_that_nobody_waited_for(script: Script, tmp_path: Path) -> None:
    log = tmp_path / "log"
    body = (
        f"verb = os.environ['CNI_COMMAND']\nopen({str(log)!r}, 'a').write(f'{{verb}} ')\n"
        "import time\ntime.sleep(600 if verb == 'ADD' else 0)"
    )
    call = script(body)
    wait = delegate.begin_add(call)
    until(lambda: log.exists() and log.read_text() == "ADD ")
    delegate.delete(call)
    assert log.read_text() == "ADD DEL "
    with pytest.raises(IpamFailed, match="was ended before it answered"):
        wait(1)


@pytest.mark.parametrize("code", [3, 11, 7, 999])
def test_its_error_keeps_code_and_message(script: Script, code: int) -> None:
    error = {"cniVersion": "1.0.0", "code": code, "msg": "no lease", "details": "eth9"}
    with pytest.raises(IpamFailed, match=r"^no lease$") as e:
        delegate.delete(script(f"{says(error)}\nsys.exit(1)"))
    assert e.value.code == code
    assert e.value.details == "eth9; from the IPAM plugin fake, DEL"


@pytest.mark.parametrize(
    ("body", "message", "details"),
    [
        ("sys.stderr.write('panic: x')\nsys.exit(2)", "ended with 2 and gave no CNI", "panic: x"),
        ("sys.stdout.write('[1]')\nsys.exit(1)", "ended with 1 and gave no CNI error", "[1]"),
        (says({"code": 0, "msg": "x"}) + "\nsys.exit(1)", "ended with 1 and gave no CNI", ""),
        (says({"code": 2**32, "msg": "x"}) + "\nsys.exit(1)", "ended with 1 and gave no", ""),
        (says({"code": True, "msg": "x"}) + "\nsys.exit(1)", "ended with 1 and gave no", ""),
        (f"os.kill(os.getpid(), {int(signal.SIGKILL)})", "was killed by signal 9", ""),
        ("", "printed no result of CNI 0.3.1", ""),
        ("sys.stdout.write('[' * 100000)", "printed no result of CNI", ""),
        (says({**ANSWER, "cniVersion": "0.2.0"}), "printed no result of CNI", ""),
        (says({**ANSWER, "ips": [{"address": "x"}]}), r"result of fake.ips\[0\].address", ""),
        ("sys.stdout.write('x' * (5 << 20))", "printed more than 4 MiB", ""),
    ],
)
def test_bad_answers_are_ipam_failed(script: Script, body: str, message: str, details: str) -> None:
    with pytest.raises(IpamFailed, match=message) as e:
        delegate.begin_add(script(body))(20)
    assert e.value.code == 103
    assert details in e.value.details


def test_nothing_is_left_open(script: Script) -> None:
    before = descriptors()
    delegate.begin_add(script(says(ANSWER)))(20)
    for body in ("sys.exit(1)", "import time\ntime.sleep(600)"):
        with pytest.raises((IpamFailed, DeadlineExceeded)):
            delegate.check(script(body), seconds=0.3)
    call = script("")
    Path(call.env["CNI_PATH"].split(":")[1], "fake").write_text("no program")
    with pytest.raises(IpamFailed, match="cannot execute"):
        delegate.check(call)
    assert descriptors() == before
    assert delegate._pending == {}


@pytest.mark.parametrize("kind", [".", "..", "a/b", "/bin/true", "\0"])
def test_type_is_a_file_name(kind: str) -> None:
    with pytest.raises(BadConfig, match=r"ipam.type: .* is no file name"):
        delegate.find(kind, "/bin")


def test_missing_plugin_names_the_directories(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("")
    where = f"{tmp_path}:relative:/none"
    for kind in "abc":
        with pytest.raises(BadConfig, match=f"no executable '{kind}' in {tmp_path}:/none;"):
            delegate.find(kind, where)
    with pytest.raises(BadConfig, match="names no absolute directory"):
        delegate.find("c", "")
    (tmp_path / "b").chmod(0o644 | stat.S_IXUSR)
    assert delegate.find("b", where) == str(tmp_path / "b")


@pytest.mark.parametrize("config", [{}, {"ipam": {}}, {"ipam": {"type": 7}}, {"ipam": []}])
def test_type_is_required(config: dict[str, Any]) -> None:
    with pytest.raises(BadConfig, match=r"^ipam.type: required"):
        delegate.begin_add(delegate.Call("net", config, key=AttachmentKey("a", "eth0")))


OLD = (
    "verb = os.environ['CNI_COMMAND']\n"
    "if verb == 'VERSION':\n"
    "    sys.stdout.write(json.dumps({'supportedVersions': ['0.4.0', '1.0.0']}))\n"
    "else:\n"
    "    sys.stdout.write(json.dumps({'code': 4, 'msg': f'unknown CNI_COMMAND: {verb}'}))\n"
    "    sys.exit(1)"
)


def test_old_plugin_that_knows_no_gc_and_status(script: Script) -> None:
    delegate.collect(script(OLD), [])
    delegate.status(script(OLD))
    with pytest.raises(NotReady, match=r"cniVersion: .* fake does not serve 1.1.0"):
        delegate.status(script(OLD, version="1.1.0"))
    with pytest.raises(IpamFailed, match="unknown CNI_COMMAND: CHECK"):
        delegate.check(script(OLD))


def test_other_refusals_of_gc_and_status_are_errors(script: Script) -> None:
    for code, msg in ((4, "CNI_PATH is missing"), (50, "no daemon; CNI_COMMAND"), (1, "version")):
        body = f"{says({'code': code, 'msg': msg})}\nsys.exit(1)"
        for verb in (lambda c: delegate.collect(c, []), delegate.status):
            with pytest.raises(IpamFailed, match=msg) as e:
                verb(script(body))
            assert e.value.code == code


def test_host_local_is_served_here(tmp_path: Path) -> None:
    section = {"type": "host-local", "dataDir": str(tmp_path), "subnet": "10.1.0.0/24"}
    key = AttachmentKey("pod", "eth0")
    call = delegate.Call("net", {"ipam": section}, {"CNI_PATH": "/none"}, key=key)
    assert delegate.begin_add(call)(0) == Result(ips=(IP("10.1.0.2/24", "10.1.0.1"),))
    delegate.check(call)
    delegate.status(delegate.Call("net", {"ipam": section}))
    delegate.collect(delegate.Call("net", {"ipam": section}), [key])
    assert (tmp_path / "net" / "10.1.0.2").read_bytes() == b"pod\r\neth0"
    delegate.delete(call)
    assert not (tmp_path / "net" / "10.1.0.2").exists()
