"""Records of attachments: written as a whole or not at all, readable by root alone, checked."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

import pytest

from cni.attach.records import Record, Store
from cni.errors import AttachmentExists, IOFailure
from cni.spec.types import AttachmentKey

KEY = AttachmentKey("c1", "eth0")
RECORD = Record(
    container_id="c1",
    ifname="eth0",
    network="net",
    mode="tc",
    uplink="linux",
    steps={"prepare": [], "bind": [{"step": "ChainedInterface", "ifname": "eth0"}]},
    netns_path="/run/netns/\udcff",  # os.fsdecode of a byte that is not UTF-8
    netns_identity=(4, 4026531840),
    stdin='{"name": "n\u00e4t"}',
    env={"CNI_ARGS": "\udc80"},
    facts={"Nic": {"mac": "02:00:00:00:00:01", "mtu": 1400}},
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run" / "state"


@pytest.fixture
def store(directory: Path) -> Store:
    made = Store(directory)
    made.create()
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def path_of(directory: Path, key: AttachmentKey = KEY) -> Path:
    return directory / f"{key.digest}.json"


def test_what_is_begun_is_loaded(store: Store) -> None:
    store.begin(RECORD)
    found = store.load(KEY)
    assert found == RECORD
    assert found.key == KEY
    assert list(store.all()) == [RECORD]


def test_what_the_steps_found_is_behind_it(store: Store, directory: Path) -> None:
    store.begin(RECORD)
    found = replace(
        RECORD, facts={"PortMtu": {"mtu": 9000}}, result={"ips": []}, device={"id": "x"}
    )
    store.finish(found)
    assert store.load(KEY) == replace(found, intent=False)
    assert [store.load(KEY)] == list(store.all()) == [found]
    assert len(list(directory.iterdir())) == 1


def test_a_second_line_that_is_cut_leaves_an_intent(store: Store, directory: Path) -> None:
    store.begin(RECORD)
    whole = path_of(directory).stat().st_size
    store.finish(replace(RECORD, facts={"PortMtu": {"mtu": 9000}}))
    end = path_of(directory).stat().st_size
    for size in range(end - 1, whole - 1, -1):
        os.truncate(path_of(directory), size)
        assert store.load(KEY) == RECORD


def test_a_record_is_begun_once(store: Store) -> None:
    store.begin(RECORD)
    with pytest.raises(AttachmentExists, match="DEL comes first"):
        store.begin(replace(RECORD, mode="tap"))
    assert store.load(KEY) == RECORD


def test_records_are_told_apart_by_the_whole_key(store: Store) -> None:
    for container, ifname in (("c1", "eth0"), ("c1", "eth1"), ("c2", "eth0"), ("c", "1eth0")):
        store.begin(replace(RECORD, container_id=container, ifname=ifname))
    assert len(list(store.all())) == 4
    store.remove(KEY)
    assert store.load(KEY) is None
    assert {r.key for r in store.all()} == {
        AttachmentKey("c1", "eth1"),
        AttachmentKey("c2", "eth0"),
        AttachmentKey("c", "1eth0"),
    }


def test_what_is_absent_is_no_error(store: Store, directory: Path) -> None:
    store.remove(KEY)
    assert store.load(KEY) is None
    assert list(store.all()) == list(Store(directory / "nowhere").all()) == []


def test_only_root_reads(store: Store, directory: Path) -> None:
    before = os.umask(0)
    try:
        Store(directory.parent / "other").create()
        store.begin(RECORD)
    finally:
        os.umask(before)
    assert mode(directory.parent / "other") == 0o700
    assert [mode(p) for p in directory.iterdir()] == [0o600]


def fails_at(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def refuse(*_args: object, **_kwargs: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, refuse)


@pytest.mark.parametrize("call", ["open", "write"])
def test_a_failed_finish_leaves_the_intent(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store.begin(RECORD)
    mine = replace(RECORD)
    with monkeypatch.context() as patch:
        fails_at(patch, call)
        with pytest.raises(IOFailure, match=r"cannot write .*: No space left"):
            store.finish(mine)
    assert store.load(KEY) == mine == RECORD


@pytest.mark.parametrize("call", ["open", "write"])
def test_a_failed_begin_leaves_nothing(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with monkeypatch.context() as patch:
        fails_at(patch, call)
        with pytest.raises(IOFailure, match=r"cannot write .*: No space left"):
            store.begin(RECORD)
    assert list(directory.iterdir()) == []


def test_a_symbolic_link_is_not_followed(store: Store, directory: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    path_of(directory).symlink_to(target)
    with pytest.raises(AttachmentExists):
        store.begin(RECORD)
    with pytest.raises(IOFailure):
        store.finish(replace(RECORD))
    assert target.read_text() == "kept"


GOOD = asdict(RECORD)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"null",
        b"[]",
        b"5",
        b'"text"',
        b"{}",
        json.dumps({k: v for k, v in GOOD.items() if k != "steps"}).encode(),
        json.dumps({**GOOD, "strange": 1}).encode(),
        json.dumps({**GOOD, "netns_identity": 5}).encode(),
    ],
    ids="empty cut bytes null list number text {} less more identity".split(),
)
def test_a_file_that_is_no_record_is_passed_over_with_a_warning(
    store: Store, directory: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    other = replace(RECORD, ifname="eth1")
    store.begin(other)
    path_of(directory).write_bytes(content)
    assert list(store.all()) == [other]
    assert store.load(KEY) is None
    assert all("is not a record" in r.message for r in caplog.records)
    assert len(caplog.records) == 2


def test_a_record_that_cannot_be_read_is_an_error_of_its_own(store: Store, directory: Path) -> None:
    """Otherwise a DEL would take the attachment for unknown, and leave its links behind."""
    path_of(directory).mkdir()
    with pytest.raises(IOFailure, match="cannot read"):
        store.load(KEY)
