"""Records: written whole or not at all, private, and read with suspicion."""

import errno
import json
import os
import stat
from dataclasses import asdict, replace

import pytest

from cni import state
from cni.errors import IOFailure
from cni.state import Record, Store
from cni.types import AttachmentKey

KEY = AttachmentKey("c1", "eth0")
RECORD = Record(
    container_id="c1",
    ifname="eth0",
    network="net",
    mode="tc",
    uplink="linux",
    plan={"prepare": [], "bind": [{"step": "Chain", "ifname": "eth0"}]},
    netns_path="/run/netns/\udcff",  # os.fsdecode of a byte that is not UTF-8
    netns_identity=(4, 4026531840),
    stdin='{"name": "n\u00e4t"}',
    env={"CNI_ARGS": "\udc80"},
    facts={"mtu": 1400},
)


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "run" / "state"


@pytest.fixture
def store(directory):
    made = Store(directory)
    made.create()
    return made


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_saved_is_loaded(store):
    store.save(RECORD)
    assert store.load(KEY) == RECORD
    assert store.load(KEY).key == KEY
    assert list(store.all()) == [RECORD]


def test_saving_again_replaces(store, directory):
    store.save(RECORD)
    done = replace(RECORD, intent=False, result={"ips": []})
    store.save(done)
    assert list(store.all()) == [done]
    assert len(list(directory.iterdir())) == 1


def test_records_are_told_apart_by_the_whole_key(store):
    for container, ifname in (("c1", "eth0"), ("c1", "eth1"), ("c2", "eth0"), ("c", "1eth0")):
        store.save(replace(RECORD, container_id=container, ifname=ifname))
    assert len(list(store.all())) == 4
    store.remove(KEY)
    assert store.load(KEY) is None
    assert {r.key for r in store.all()} == {
        AttachmentKey("c1", "eth1"),
        AttachmentKey("c2", "eth0"),
        AttachmentKey("c", "1eth0"),
    }


def test_what_is_absent_is_no_error(store, directory):
    store.remove(KEY)
    assert store.load(KEY) is None
    assert list(store.all()) == list(Store(directory / "nowhere").all()) == []


def test_only_root_reads(store, directory):
    before = os.umask(0)
    try:
        Store(directory.parent / "other").create()
        store.save(RECORD)
    finally:
        os.umask(before)
    assert mode(directory.parent / "other") == 0o700
    assert [mode(p) for p in directory.iterdir()] == [0o600]


def test_half_written_files_are_cleared_and_never_read(store, directory):
    store.save(RECORD)
    (directory / f"{KEY.digest}.tmp").write_text('{"container')
    assert list(store.all()) == [RECORD]
    store.create()
    assert [p.suffix for p in directory.iterdir()] == [".json"]


def fails_at(monkeypatch, call):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(state.os, call, refuse)


@pytest.mark.parametrize("call", ["open", "rename"])
def test_a_failed_write_leaves_the_record_before(store, directory, monkeypatch, call):
    store.save(RECORD)
    with monkeypatch.context() as patch:
        fails_at(patch, call)
        with pytest.raises(IOFailure, match=r"cannot write .*: No space left"):
            store.save(replace(RECORD, intent=False))
    assert store.load(KEY) == RECORD
    assert [p.suffix for p in directory.iterdir()] == [".json"]


def test_a_temporary_file_in_the_way_leaves_the_record_before(store, directory):
    store.save(RECORD)
    (directory / f"{KEY.digest}.tmp").mkdir()
    with pytest.raises(IOFailure, match="Is a directory"):
        store.save(replace(RECORD, intent=False))
    assert store.load(KEY) == RECORD


def test_a_symbolic_link_is_not_followed(store, directory, tmp_path):
    target = tmp_path / "precious"
    target.write_text("kept")
    (directory / f"{KEY.digest}.tmp").symlink_to(target)
    with pytest.raises(IOFailure):
        store.save(RECORD)
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
        json.dumps({k: v for k, v in GOOD.items() if k != "plan"}).encode(),
        json.dumps({**GOOD, "strange": 1}).encode(),
        json.dumps({**GOOD, "netns_identity": 5}).encode(),
    ],
    ids="empty cut bytes null list number text {} less more identity".split(),
)
def test_a_file_that_is_no_record_is_passed_over_with_a_warning(store, directory, caplog, content):
    other = replace(RECORD, ifname="eth1")
    store.save(other)
    (directory / f"{KEY.digest}.json").write_bytes(content)
    assert list(store.all()) == [other]
    assert store.load(KEY) is None
    assert all("is not a record" in r.message for r in caplog.records)
    assert len(caplog.records) == 2
    store.save(RECORD)
    assert store.load(KEY) == RECORD


def test_a_record_that_cannot_be_read_is_an_error_of_its_own(store, directory):
    """Else a DEL would take the attachment for unknown and leave things behind."""
    (directory / f"{KEY.digest}.json").mkdir()
    with pytest.raises(IOFailure, match="cannot read"):
        store.load(KEY)
