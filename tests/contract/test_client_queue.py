"""The client as a black box: it queues DELs while no daemon listens."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

import pytest

from cni.spec import protocol
from tests.contract.fakedaemon import CONF, DEL, FakeDaemon, finish, until


def test_del_is_queued(absent: FakeDaemon) -> None:
    absent.path = absent.home / "deep" / "er" / "s"
    absent.queue = absent.path.parent / "queue"
    for n in range(2):
        assert absent.run({**DEL, "CNI_ARGS": f"N={n}", "HOME": "/"}) == (0, b"")
    first, second = (protocol.decode_payload(path.read_bytes()) for path in absent.queued())
    assert first == protocol.Frame({**DEL, "CNI_ARGS": "N=0"}, CONF)
    assert second.env["CNI_ARGS"] == "N=1"
    stamp, _, pid = absent.queued()[0].stem.partition("-")
    assert len(stamp) == 19
    assert abs(int(stamp) / 1e9 - time.time()) < 60
    assert pid.isdigit()
    assert {path.name for path in absent.queue.iterdir()} - {p.name for p in absent.queued()} == {
        "lock"
    }
    for path, mode in [
        (absent.path.parent, 0o700),
        (absent.queue, 0o700),
        (absent.queued()[0], 0o600),
    ]:
        assert path.stat().st_mode & 0o777 == mode


def test_queue_of_a_relative_socket(absent: FakeDaemon) -> None:
    env = {**DEL, "VMLINK_SOCKET": "s"}
    via = ["env", "-C", str(absent.home), "PATH=/usr/bin:/bin"]
    assert absent.run(env, CONF, *via) == (0, b"")
    assert len(absent.queued()) == 1


def test_queue_is_bounded(absent: FakeDaemon) -> None:
    absent.queue.mkdir()
    for n in range(protocol.QUEUE_MAX - 1):
        (absent.queue / f"{n}.del").touch()
    (absent.queue / "left.tmp").touch()
    assert absent.run(DEL) == (0, b"")
    error = absent.fails(DEL)
    assert error["code"] == 11
    assert "4096" in error["msg"]
    assert len(absent.queued()) == protocol.QUEUE_MAX


@pytest.mark.parametrize(
    ("change", "code", "names"),
    [
        ({"CNI_CONTAINERID": None}, 4, {"CNI_CONTAINERID"}),
        ({"CNI_IFNAME": None}, 4, {"CNI_IFNAME"}),
        ({"CNI_IFNAME": ""}, 4, {"CNI_IFNAME"}),
        ({"CNI_CONTAINERID": None, "CNI_IFNAME": None}, 4, {"CNI_CONTAINERID", "CNI_IFNAME"}),
        ({"CNI_CONTAINERID": ""}, 3, {"CNI_CONTAINERID"}),
    ],
)
def test_nameless_del_is_not_queued(
    absent: FakeDaemon, change: dict[str, str | None], code: int, names: set[str]
) -> None:
    error = absent.fails({k: v for k, v in {**DEL, **change}.items() if v is not None})
    assert error["code"] == code
    assert {name for name in DEL if name in error["msg"]} == names
    assert not absent.queue.exists()


def test_queue_that_cannot_be_made(absent: FakeDaemon) -> None:
    absent.queue.write_bytes(b"a file")
    error = absent.fails(DEL)
    assert error["code"] == 11
    assert "cannot be queued" in error["msg"]


def test_queue_on_a_full_disk_leaves_nothing(absent: FakeDaemon) -> None:
    assert (
        absent.fails(DEL, CONF, "prlimit", "--fsize=10", "env", "--ignore-signal=XFSZ")["code"]
        == 11
    )
    assert [path.name for path in absent.queue.iterdir()] == ["lock"]


def waits_for_lock(pid: int) -> bool:
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(line[1] == "->" and line[5] == str(pid) for line in lines)


def test_del_during_replay_is_delivered(absent: FakeDaemon) -> None:
    absent.queue.mkdir()
    with (absent.queue / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = absent.start(DEL)
        until(lambda: waits_for_lock(process.pid))
        absent.listen()
        fcntl.flock(lock, fcntl.LOCK_UN)
        with absent.accept() as conn:
            assert protocol.receive(conn)[0].env == DEL
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            conn.sendall(protocol.encode_answer(0, b""))
        assert finish(process) == (0, b"")
    assert absent.queued() == []


def test_replay_that_hangs(absent: FakeDaemon) -> None:
    absent.queue.mkdir()
    with (absent.queue / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert absent.fails({**DEL, "VMLINK_TIMEOUT": "1"})["code"] == 11
    assert absent.queued() == []
