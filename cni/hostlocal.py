"""The `host-local` IPAM plugin in this process, on the store of the real one.

Source: containernetworking/plugins, plugins/ipam/host-local (1.1.1 to main, August 2026).
The store is `<dataDir>/<network>/`: a `lock` file under flock(2), one file per address with
`<container id>\\r\\n<ifname>` (before 0.8: the id alone), and `last_reserved_ip.<range set>`.
Either program releases what the other gave, and allocates in the same order.

Where this one differs, on purpose:
- DEL, CHECK and GC need only `dataDir` and the name, so a config with bad ranges leaks nothing.
- A failed ADD takes back what it gave itself, not all that (id, ifname) holds.
- A reservation appears complete, by link(2): an empty file would have no owner to release it.
- A rangeStart after the end is refused; the real one walks out of the subnet.
- CNI_ARGS other than IP are the caller's to judge. A full network is not reported by STATUS:
  the node would turn NotReady, and its pods be evicted, for want of one address.

Only reading every file tells who owns what, so the store is held in memory and inotify(7) names
the files to read again. Its events are queued before the writer's system call returns, hence
before it gives the lock back. Where inotify fails, every call reads all. On a file system that
changes without events (NFS) only the search for a duplicate can miss: link(2) refuses an address
that is taken, and a file is read again before it is removed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import struct
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import pairwise
from typing import Any

from cni import result
from cni.errors import (
    AttachmentExists,
    BadConfig,
    CheckFailed,
    IOFailure,
    IpamFailed,
    NotReady,
)
from cni.types import IP, AttachmentKey, Result

Address = IPv4Address | IPv6Address

DATA_DIR = "/var/lib/cni/networks"
_NETWORK = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*\Z")
_PREFIX = re.compile(r"[0-9]{1,3}\Z")
_TEMPORARY = ".vmlink"
_STORES = 32  # each costs an inotify instance, of which a user has 128


@dataclass(frozen=True)
class IpamRequest:
    """ADD, DEL or CHECK of one attachment: the decoded network config and CNI_ARGS."""

    key: AttachmentKey
    network: str
    config: dict[str, Any]
    args: dict[str, str]

    @property
    def owner(self) -> bytes:
        return _owner(self.key)


def add(request: IpamRequest) -> Result:
    """Reserve one address of each range set, in the round-robin order of the real plugin.

    Raises BadConfig, AttachmentExists (nothing was given; what the attachment holds stays),
    IpamFailed (no address, or not the one asked for), IOFailure.
    """
    sets = _range_sets(request.config)
    wanted = _requested(request)
    ipam = _section(request.config)
    routes = result.load({"routes": ipam.get("routes")}, "ipam").routes
    dns = _resolv_conf(ipam)
    given: list[str] = []
    ips: list[IP] = []
    with _locked(_directory(request.network, request.config)) as store:
        try:
            for number, ranges in enumerate(sets):
                address, range_ = _allocate(store, number, ranges, wanted, request)
                given.append(str(address))
                ips.append(IP(f"{address}/{range_.prefix}", str(range_.gateway)))
            if wanted:
                where = ", ".join(f"{key} {address}" for address, key in wanted.items())
                raise IpamFailed(f"{where}: in no free range set of network {request.network}")
        except BaseException:
            for name in given:
                with suppress(OSError):
                    store.release(name)
            raise
    return Result(ips=tuple(ips), routes=routes, dns=dns)


def delete(request: IpamRequest) -> None:
    """Release what the attachment holds; nothing held is success. Raises BadConfig, IOFailure."""
    directory = _directory(request.network, request.config)
    if not os.path.isdir(directory):
        return
    with _locked(directory) as store:
        names = store.held(request.owner) or store.held(_id(request.key))
        store.release_all(names)


def check(request: IpamRequest) -> None:
    """Raises CheckFailed when the attachment holds no address; BadConfig, IOFailure."""
    directory = _directory(request.network, request.config)
    if os.path.isdir(directory):
        with _locked(directory) as store:
            if store.held(request.owner) or store.held(_id(request.key)):
                return
    raise CheckFailed(f"host-local: {directory} holds no address of {request.key}; expected one")


def collect(network: str, config: Mapping[str, Any], valid: Collection[AttachmentKey]) -> None:
    """Release every address of the network whose owner is not in `valid`.

    A reservation with the id alone stays while that container has any valid attachment.
    Raises BadConfig, IOFailure (all that could be released was).
    """
    directory = _directory(network, config)
    if not os.path.isdir(directory):
        return
    owners = {_owner(key) for key in valid} | {_id(key) for key in valid}
    with _locked(directory) as store:
        store.load()
        store.release_all([n for n, owner in store.entries.items() if owner not in owners])


def status(network: str, config: Mapping[str, Any]) -> None:
    """Raises BadConfig for a config that ADD would refuse, NotReady for an unusable store."""
    _range_sets(config)
    result.load({"routes": _section(config).get("routes")}, "ipam")
    _resolv_conf(_section(config))
    try:
        with _locked(_directory(network, config)):
            pass
    except IOFailure as e:
        raise NotReady(e.msg, e.details) from e


# --- the store


def _id(key: AttachmentKey) -> bytes:
    return key.container_id.strip().encode("utf-8", "surrogateescape")


def _owner(key: AttachmentKey) -> bytes:
    return _id(key) + b"\r\n" + key.ifname.encode("utf-8", "surrogateescape")


class _Store:
    """One network's directory. All methods but the constructor need the lock (`_locked`)."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.mutex = threading.Lock()
        self.watch = self.lock = -1
        self.entries: dict[str, bytes] = {}
        self.owners: dict[bytes, set[str]] = {}
        self.taken: dict[int, set[int]] = {4: set(), 6: set()}
        self.loaded = False
        os.makedirs(directory, 0o755, exist_ok=True)
        self.lock = os.open(self.path("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o750)
        self.watch = _watch(directory)

    def __del__(self) -> None:
        for fd in (self.lock, self.watch):
            if fd >= 0:
                os.close(fd)

    def path(self, name: str) -> str:
        return f"{self.directory}/{name}"

    def current(self) -> bool:
        """Whether the lock that we hold is the one that others find at the path."""
        try:
            return os.path.samestat(os.fstat(self.lock), os.stat(self.path("lock")))
        except FileNotFoundError:
            return False

    def sync(self) -> None:
        names = self._changed() if self.loaded else None
        if names is None:
            self.load()
            return
        self.loaded = False  # an error half-way means: read all again
        for name in names:
            self._read(name)
        self.loaded = True

    def load(self) -> None:
        self.loaded = False
        for owned in (self.entries, self.owners, self.taken[4], self.taken[6]):
            owned.clear()
        for name in os.listdir(self.directory):
            self._read(name)
        self.loaded = True

    def held(self, owner: bytes) -> list[str]:
        for name in tuple(self.owners.get(owner, ())):
            self._read(name)
        return sorted(self.owners.get(owner, ()))

    def reserve(self, address: Address, owner: bytes, number: int) -> bool:
        """Give the address to `owner` as the last of range set `number`; False: it is taken."""
        name = str(address)
        temporary = self.path(_TEMPORARY)
        self._write(temporary, owner)
        try:
            os.link(temporary, self.path(name))
        except FileExistsError:
            self._read(name)
            return False
        finally:
            os.unlink(temporary)
        self._note(name, address, owner)
        try:
            self._overwrite(self.path(f"last_reserved_ip.{number}"), name.encode())
        except OSError:
            self.release(name)
            raise
        return True

    def last(self, number: int) -> Address | None:
        try:
            with open(self.path(f"last_reserved_ip.{number}"), encoding="ascii") as file:
                return ip_address(file.read())
        except (FileNotFoundError, ValueError):
            return None

    def release(self, name: str) -> None:
        with suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(self.path(name))
        self._read(name)

    def release_all(self, names: Collection[str]) -> None:
        failed: list[str] = []
        for name in names:
            try:
                self.release(name)
            except OSError as e:
                failed.append(f"{name}: {e.strerror}")
        if failed:
            raise IOFailure(f"host-local: cannot release in {self.directory}", "; ".join(failed))

    def _write(self, path: str, data: bytes) -> None:
        # Left by a crash it may be a link of a reservation: never open that for writing.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o644)
        except FileExistsError:
            os.unlink(path)
            fd = os.open(path, flags, 0o644)
        _write_all(fd, data)

    def _overwrite(self, path: str, data: bytes) -> None:
        # No O_TRUNC: ext4 writes a file out when it is closed after having been emptied.
        _write_all(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644), data)

    def _read(self, name: str) -> None:
        if name[0] not in "0123456789abcdef:":
            return
        try:
            address = ip_address(name)
        except ValueError:
            return
        if str(address) != name:
            return
        self._drop(name, address)
        try:
            # A FIFO must not hang us, nor a symbolic link lead elsewhere.
            fd = os.open(self.path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            self._note(name, address, os.read(fd, 4096).strip())
        except IsADirectoryError:
            self._note(name, address, b"")
        finally:
            os.close(fd)

    def _note(self, name: str, address: Address, owner: bytes) -> None:
        self.entries[name] = owner
        self.owners.setdefault(owner, set()).add(name)
        self.taken[address.version].add(int(address))

    def _drop(self, name: str, address: Address) -> None:
        owner = self.entries.pop(name, None)
        if owner is not None:
            names = self.owners[owner]
            names.discard(name)
            if not names:
                del self.owners[owner]
        self.taken[address.version].discard(int(address))

    def _changed(self) -> set[str] | None:
        """Names of files that changed since the last call; None: nobody knows."""
        names: set[str] = set()
        while self.watch >= 0:
            try:
                data = os.read(self.watch, 65536)
            except BlockingIOError:
                return names
            offset = 0
            while offset < len(data):
                _, mask, _, length = struct.unpack_from("iIII", data, offset)
                offset += 16 + length
                if mask & _IN_LOST:
                    os.close(self.watch)
                    self.watch = _watch(self.directory)
                    return None
                names.add(os.fsdecode(data[offset - length : offset].rstrip(b"\0")))
        return None


_stores: dict[str, _Store] = {}
_stores_lock = threading.Lock()


@contextmanager
def _locked(directory: str) -> Iterator[_Store]:
    """The up-to-date store, alone among threads and processes. OSError becomes IOFailure."""
    try:
        while True:
            with _stores_lock:
                store = _stores.pop(directory, None) or _Store(directory)
                _stores[directory] = store
                if len(_stores) > _STORES:
                    del _stores[next(iter(_stores))]
            with store.mutex:
                fcntl.flock(store.lock, fcntl.LOCK_EX)
                try:
                    if store.current():
                        store.sync()
                        yield store
                        return
                finally:
                    fcntl.flock(store.lock, fcntl.LOCK_UN)
            with _stores_lock:
                if _stores.get(directory) is store:
                    del _stores[directory]
    except OSError as e:
        raise IOFailure(f"host-local store {directory}: {e.strerror}", str(e)) from e


def _write_all(fd: int, data: bytes) -> None:
    with open(fd, "wb", buffering=0) as file:
        if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if os.fstat(fd).st_size > len(data):
            file.truncate()


# Of a directory only: written and closed, moved out, moved in, made, deleted.
_IN_EVENTS = 0x01000000 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200
_IN_LOST = 0x2000 | 0x4000 | 0x8000  # unmounted, overflow, watch gone
_libc = ctypes.CDLL(None, use_errno=True)


def _watch(directory: str) -> int:
    """A non-blocking inotify descriptor on the directory; -1 where the kernel gives none."""
    fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd >= 0 and _libc.inotify_add_watch(fd, os.fsencode(directory), _IN_EVENTS) < 0:
        os.close(fd)
        return -1
    return fd


# --- what the config asks for


@dataclass(frozen=True)
class _Range:
    """A canonical range: `first` to `last`, both included, without the gateway."""

    key: str
    version: int
    first: int
    last: int
    prefix: int
    gateway: Address

    def __contains__(self, address: Address) -> bool:
        return self.version == address.version and self.first <= int(address) <= self.last

    def address(self, number: int) -> Address:
        return IPv4Address(number) if self.version == 4 else IPv6Address(number)

    def __str__(self) -> str:
        return f"{self.key} ({self.address(self.first)}-{self.address(self.last)})"


def _section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return _object(config.get("ipam"), "ipam")


def _object(value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadConfig(f"{key}: expected an object, found {value!r}")
    return value


def _list(value: Any, key: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadConfig(f"{key}: expected a list, found {value!r}")
    return value


def _text(data: Mapping[str, Any], name: str, key: str) -> str:
    value = data.get(name) or ""
    if not isinstance(value, str) or "\0" in value:
        raise BadConfig(f"{key}.{name}: expected a string, found {value!r}")
    return value


def _directory(network: str, config: Mapping[str, Any]) -> str:
    if not _NETWORK.match(network):
        raise BadConfig(f"name: {network!r} cannot name a directory; use letters, digits, _ . -")
    base = _text(_section(config), "dataDir", "ipam") or DATA_DIR
    if not base.startswith("/"):
        raise BadConfig(f"ipam.dataDir: {base!r} is relative; write an absolute path")
    return os.path.join(base, network)


def _address(value: Any, key: str) -> Address:
    try:
        if not isinstance(value, str):
            raise ValueError
        address = ip_address(value)
    except ValueError:
        raise BadConfig(f"{key}: expected an IP address, found {value!r}") from None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise BadConfig(f"{key}: {value!r} has a zone; write the address alone")
        return address.ipv4_mapped or address
    return address


def _range(value: Any, key: str) -> _Range:
    data = _object(value, key)
    text = _text(data, "subnet", key)
    base, _, length = text.partition("/")
    if not _PREFIX.match(length):
        raise BadConfig(f"{key}.subnet: expected network/prefix length, found {text!r}")
    subnet = _address(base, f"{key}.subnet")
    prefix, bits = int(length), subnet.max_prefixlen
    if prefix > bits - 2:
        raise BadConfig(f"{key}.subnet: {text} is too small; the longest prefix is /{bits - 2}")
    low = int(subnet)
    hosts = (1 << (bits - prefix)) - 1
    high = low | hosts
    if low & hosts:
        network = type(subnet)(low & ~hosts)
        raise BadConfig(f"{key}.subnet: {text} has host bits set; write {network}/{prefix}")
    ends = {"rangeStart": low + 1, "rangeEnd": high - (subnet.version == 4)}
    for name in ends:
        if data.get(name):
            end = _address(data[name], f"{key}.{name}")
            if end.version != subnet.version or not low <= int(end) <= high:
                raise BadConfig(f"{key}.{name}: {end} is not in {text}; choose one of it")
            ends[name] = int(end)
    first, last = ends.values()
    if first > last:
        raise BadConfig(f"{key}.rangeStart: it is after the rangeEnd; exchange or correct them")
    gateway = data.get("gateway")
    chosen = _address(gateway, f"{key}.gateway") if gateway else type(subnet)(low + 1)
    return _Range(key, subnet.version, first, last, prefix, chosen)


def _range_sets(config: Mapping[str, Any]) -> list[list[_Range]]:
    """Capability ranges, the old-style one, `ranges`: last_reserved_ip counts in this order."""
    ipam = _section(config)
    runtime = _object(config.get("runtimeConfig") or {}, "runtimeConfig")
    sets = _named_sets(runtime.get("ipRanges"), "runtimeConfig.ipRanges")
    if ipam.get("subnet"):
        sets.append([_range(ipam, "ipam")])
    sets += _named_sets(ipam.get("ranges"), "ipam.ranges")
    file = _text(ipam, "rangeFromFile", "ipam")
    if not sets and file:
        sets.append([_range(_json_file(file, "ipam.rangeFromFile"), "ipam.rangeFromFile")])
    if not sets:
        raise BadConfig("ipam.ranges: no range; give ipam.ranges or ipam.subnet")
    every = sorted((r for s in sets for r in s), key=lambda r: (r.version, r.first))
    for a, b in pairwise(every):
        if a.version == b.version and b.first <= a.last:
            raise BadConfig(f"{a} overlaps {b}; every address may be in one range only")
    return sets


def _named_sets(value: Any, key: str) -> list[list[_Range]]:
    sets = []
    for i, item in enumerate(_list(value, key)):
        ranges = [_range(r, f"{key}[{i}][{j}]") for j, r in enumerate(_list(item, f"{key}[{i}]"))]
        if not ranges:
            raise BadConfig(f"{key}[{i}]: an empty range set; give it a range or remove it")
        if len({r.version for r in ranges}) > 1:
            raise BadConfig(f"{key}[{i}]: IPv4 and IPv6 in one range set; make a set of each")
        sets.append(ranges)
    return sets


def _requested(request: IpamRequest) -> dict[Address, str]:
    """The addresses asked for, each with the key that asked; a prefix length is ignored."""
    config = request.config
    cni = _object(_object(config.get("args") or {}, "args").get("cni") or {}, "args.cni")
    runtime = _object(config.get("runtimeConfig") or {}, "runtimeConfig")
    asked = [(request.args["IP"], "CNI_ARGS IP")] if request.args.get("IP") else []
    for data, key in ((cni, "args.cni.ips"), (runtime, "runtimeConfig.ips")):
        asked += [(v, f"{key}[{n}]") for n, v in enumerate(_list(data.get("ips"), key))]
    return {_without_prefix(value, key): key for value, key in asked}


def _without_prefix(value: Any, key: str) -> Address:
    if not isinstance(value, str):
        raise BadConfig(f"{key}: expected an IP address, found {value!r}")
    text, slash, length = value.partition("/")
    address = _address(text, key)
    if slash and (not _PREFIX.match(length) or int(length) > address.max_prefixlen):
        raise BadConfig(f"{key}: {value!r} has a bad prefix length; correct it or leave it out")
    return address


def _json_file(path: str, key: str) -> Any:
    try:
        return json.loads(_read_file(path, key))
    except ValueError as e:
        raise BadConfig(f"{key}: {path} is not JSON: {e}") from e


def _read_file(path: str, key: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError as e:
        raise BadConfig(f"{key}: cannot read {path}: {e.strerror}") from e


def _resolv_conf(ipam: Mapping[str, Any]) -> dict[str, Any]:
    path = _text(ipam, "resolvConf", "ipam")
    dns: dict[str, Any] = {}
    for line in _read_file(path, "ipam.resolvConf").splitlines() if path else ():
        word, *rest = line.split() or [""]
        if not rest or word[0] in "#;":
            continue
        if word == "nameserver":
            dns.setdefault("nameservers", []).append(rest[0])
        elif word == "domain":
            dns["domain"] = rest[0]
        elif word in ("search", "options"):
            dns.setdefault(word, []).extend(rest)
    return dns


# --- allocation


def _allocate(
    store: _Store,
    number: int,
    ranges: list[_Range],
    wanted: dict[Address, str],
    request: IpamRequest,
) -> tuple[Address, _Range]:
    """One address of range set `number`; takes from `wanted` what it serves."""
    for address, key in list(wanted.items()):
        range_ = next((r for r in ranges if address in r), None)
        if range_ is not None:
            del wanted[address]
            if address == range_.gateway:
                raise IpamFailed(f"{key}: {address} is the gateway of {range_}; ask for another")
            if not store.reserve(address, request.owner, number):
                raise IpamFailed(f"{key}: {address} of {range_} is taken; ask for another")
            return address, range_
    for name in store.held(request.owner) + store.held(_id(request.key)):
        if any(ip_address(name) in r for r in ranges):
            raise AttachmentExists(
                f"{name} has been allocated to {request.key}, duplicate allocation is not allowed"
            )
    for address, range_ in _candidates(store, ranges, store.last(number)):
        if store.reserve(address, request.owner, number):
            return address, range_
    text = ", ".join(map(str, ranges))
    raise IpamFailed(f"no address is left in {text} of network {request.network}")


def _candidates(
    store: _Store, ranges: list[_Range], last: Address | None
) -> Iterator[tuple[Address, _Range]]:
    """Round robin: from the address after `last` through all ranges and back to it."""
    start = next((n for n, r in enumerate(ranges) if last is not None and last in r), None)
    spans = [(r, r.first, r.last) for r in ranges]
    if start is not None:
        first = ranges[start]
        spans = spans[start:] + spans[: start + 1]
        spans[0] = (first, int(last) + 1, first.last)  # type: ignore[arg-type]
        spans[-1] = (first, first.first, int(last))  # type: ignore[arg-type]
    for range_, low, high in spans:
        taken = store.taken[range_.version]
        gateway = int(range_.gateway) if range_.gateway.version == range_.version else -1
        for value in range(low, high + 1):
            if value not in taken and value != gateway:
                yield range_.address(value), range_
