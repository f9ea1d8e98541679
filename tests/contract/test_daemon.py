"""Vmlinkd's start, end and queue. Each test has a node of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.testbed.node import BIN, CLIENT, Answer, Node
from bench.testbed.slowness import SLOWNESS
from tests.contract.cnikit import config, fails, links, run, script, silent, variables

GOOD = 'echo \'{"cniVersion":"1.0.0","ips":[{"address":"10.9.2.2/24"}]}\''


@contextmanager
def under_way(node: Node, pod: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An ADD whose IPAM plugin does not return before the end of the block."""
    directory = node.lab.dir / "plugins"
    started, go = directory / "started", directory / "go"
    script(
        directory,
        "waits",
        f"[ $CNI_COMMAND = ADD ] || exit 0\necho >{started}; read x <{go}\n{GOOD}",
    )
    for fifo in (started, go):
        os.mkfifo(fifo)
    conf = config(node, cniVersion="1.0.0", ipam={"type": "waits"})
    env = variables("ADD", pod, CNI_PATH=str(directory), VMLINK_SOCKET=str(node.socket))
    with (node.lab.dir / "answer").open("wb") as answer:
        client = subprocess.Popen([CLIENT], env=env, stdin=subprocess.PIPE, stdout=answer)
    try:
        assert client.stdin
        client.stdin.write(json.dumps(conf).encode())
        client.stdin.close()
        started.read_text()
        yield client
        go.write_text("\n")
        client.wait(20 * SLOWNESS)
    finally:
        client.kill()
        client.wait()


def delete(node: Node, pod: Path) -> Answer:
    conf = config(node, cniVersion="1.0.0", ipam={"type": "waits"})
    return run(node, "DEL", pod, conf, CNI_PATH=str(node.lab.dir / "plugins"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_end_finishes_what_is_under_way(mortal: Node, home: Path, number: int) -> None:
    mortal.start()
    daemon = mortal.daemon
    assert daemon
    with under_way(mortal, home) as client:
        daemon.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.wait(0.2)
        assert client.poll() is None
    assert client.returncode == 0
    out = (mortal.lab.dir / "answer").read_text()
    assert json.loads(out)["ips"][0]["address"] == "10.9.2.2/24"
    assert daemon.wait(20 * SLOWNESS) == 0
    mortal.daemon = None
    assert not mortal.socket.exists()
    assert "eth0" in links(home)
    mortal.start()
    silent(delete(mortal, home))
    assert links(home) == {"lo"}


def test_client_that_is_killed_while_the_plugin_works(mortal: Node, home: Path) -> None:
    mortal.start()
    with under_way(mortal, home) as client:
        client.kill()
        client.wait()
    assert mortal.stop() == 0  # and vmlinkd has undone the ADD by then
    assert links(home) == {"lo"}


def test_restart_touches_nothing(mortal: Node, home: Path) -> None:
    mortal.start()
    conf = config(mortal)
    result = run(mortal, "ADD", home, conf).expect()
    before = seen(mortal, home)
    for number, status in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
        assert mortal.stop(number) == status
        mortal.start()
        assert seen(mortal, home) == before
        silent(run(mortal, "CHECK", home, {**conf, "prevResult": result}))
    silent(run(mortal, "DEL", home, conf))


def seen(node: Node, pod: Path) -> list[str]:
    """Links by index and name (their state may still change), addresses, routes and filters."""
    found = [line.split("@")[0].split(": <")[0] for line in said(node, pod, "ip -oneline link")]
    for command in ("ip -oneline -4 address", "ip route", "tc filter show dev eth0 ingress"):
        found += said(node, pod, command)
    return found


def said(node: Node, pod: Path, command: str) -> list[str]:
    return node.run(command.split(), pod).stdout.splitlines()


def test_second_vmlinkd_is_refused(mortal: Node) -> None:
    mortal.start()
    command = [str(BIN / "vmlinkd"), "--run-dir", str(mortal.run_dir)]
    second = mortal.run(command, check=False)
    assert second.returncode == 1
    assert str(mortal.run_dir) in second.stderr
    silent(mortal.call("STATUS", config(mortal)))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ("workers: 0", "workers"),
        ("bogus: 1", "bogus"),
        ("[1]", "keys"),
        ("deadline: x", "deadline"),
    ],
)
def test_bad_settings(mortal: Node, tmp_path: Path, settings: str, word: str) -> None:
    file = tmp_path / "vmlinkd.yaml"
    file.write_text(settings)
    command = [str(BIN / "vmlinkd"), "--run-dir", str(mortal.run_dir), "--config", str(file)]
    done = mortal.run(command, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert str(file) in done.stderr
    assert word in done.stderr


# The queue


def test_del_is_queued_and_replayed(mortal: Node, home: Path) -> None:
    mortal.start()
    conf = config(mortal)
    run(mortal, "ADD", home, conf).expect()
    mortal.stop()
    silent(run(mortal, "DEL", home, conf))
    assert len(list((mortal.run_dir / "queue").glob("*.del"))) == 1
    mortal.start()
    # The queue is replayed before the first call is served; no call has been made since.
    assert links(home) == {"lo"}
    assert not list((mortal.run_dir / "queue").glob("*.del"))
    run(mortal, "ADD", home, conf).expect()
    silent(run(mortal, "DEL", home, conf))


def test_other_verbs_are_not_queued(mortal: Node, home: Path) -> None:
    for verb, code in (("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)):
        fails(run(mortal, verb, home, config(mortal)), code, str(mortal.socket))


def test_replay_survives_what_it_cannot_serve(mortal: Node, home: Path) -> None:
    mortal.start()
    conf = config(mortal)
    run(mortal, "ADD", home, conf).expect()
    mortal.stop()
    fifo = mortal.lab.dir / "fifo"
    os.mkfifo(fifo)
    silent(run(mortal, "DEL", fifo, conf, CNI_CONTAINERID="c2"))
    silent(run(mortal, "DEL", home, {"name": "without a version"}, CNI_CONTAINERID="c3"))
    (mortal.run_dir / "queue" / "0-1.del").write_bytes(b"no request")
    (mortal.run_dir / "queue" / "1-1.tmp").write_bytes(b"cut sho")
    silent(run(mortal, "DEL", home, conf))
    mortal.start()
    assert links(home) == {"lo"}
    assert [p.name for p in (mortal.run_dir / "queue").iterdir()] == ["lock"]


def test_run_directory_that_others_can_write_is_refused(mortal: Node) -> None:
    mortal.run_dir.chmod(0o777)
    command = [str(BIN / "vmlinkd"), "--run-dir", str(mortal.run_dir)]
    done = mortal.run(command, check=False)
    mortal.run_dir.chmod(0o700)
    assert done.returncode == 1
    assert f"{mortal.run_dir}: others may write there" in done.stderr
