"""Files are replaced, written and read as a whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cni import files
from cni.errors import IOFailure
from tests.unit.purekit import descriptors


def test_a_file_is_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for data, mode in ((b"old", 0o600), (b"new", 0o755)):
        files.replace(path, data, mode)
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (data, mode)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    path, other = tmp_path / "f", tmp_path / "other"
    other.write_text("theirs")
    path.symlink_to(other)
    files.replace(path, b"ours")
    assert (other.read_text(), path.is_symlink()) == ("theirs", False)


def test_what_cannot_be_written_leaves_what_was(tmp_path: Path) -> None:
    (tmp_path / "f" / "in the way").mkdir(parents=True)
    with pytest.raises(IOFailure, match=r"cannot write .*/f: "):
        files.replace(tmp_path / "f", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    with pytest.raises(IOFailure, match="No such file"):
        files.replace(tmp_path / "nowhere" / "f", b"new")


@pytest.mark.parametrize("size", [0, 5, 1 << 16, (1 << 17) + 1])
def test_what_is_written_is_read(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    files.write(f"{tmp_path}/f", data, os.O_EXCL, 0o600)
    assert files.read(f"{tmp_path}/f") == data
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("flags", [0, os.O_TRUNC])
def test_nothing_is_left_behind_what_is_written(tmp_path: Path, flags: int) -> None:
    for data in (b"longer", b"new"):
        files.write(f"{tmp_path}/f", data, flags, 0o600)
        assert files.read(f"{tmp_path}/f") == data


def test_a_disk_that_is_full_is_an_error_and_no_descriptor_stays() -> None:
    before = descriptors()
    with pytest.raises(OSError, match="No space left"):
        files.write("/dev/full", b"data", 0, 0o600)
    assert descriptors() == before
