"""A cpio archive as the kernel unpacks it (driver-api/early-userspace/buffer-format.rst)."""

from __future__ import annotations

import stat


class Archive:
    """An archive in the format `newc`; parent directories are added as needed."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._paths: set[str] = set()

    def directory(self, path: str) -> None:
        """Add a directory."""
        self._entry(path, stat.S_IFDIR | 0o755)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._entry(path, stat.S_IFREG | mode, data)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def node(self, path: str, mode: int, major: int, minor: int) -> None:
        """Add a device node; `mode` has the type, such as S_IFCHR."""
        self._entry(path, mode, major=major, minor=minor)

    def encode(self) -> bytes:
        """The whole archive, with its trailer."""
        return b"".join([*self._parts, self._record("TRAILER!!!", 0)])

    def _entry(
        self, path: str, mode: int, data: bytes = b"", *, major: int = 0, minor: int = 0
    ) -> None:
        parent = path.rpartition("/")[0]
        if parent and parent not in self._paths:
            self.directory(parent)
        if path not in self._paths:
            self._paths.add(path)
            self._parts.append(self._record(path, mode, data, major, minor))

    def _record(
        self, path: str, mode: int, data: bytes = b"", major: int = 0, minor: int = 0
    ) -> bytes:
        name = path.encode() + b"\0"
        fields = (len(self._paths), mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        return _padded(header + name) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
