"""The `host-local` IPAM plugin in this process, on the store of the real one.

Source: containernetworking/plugins, plugins/ipam/host-local (1.1.1 to main, August 2026).
The store is `<dataDir>/<network>/`: a file `lock` under flock(2), a file for each address with the
container id, CR LF and the interface name (before 0.8 the id alone), and
`last_reserved_ip.<range set>`. Either program releases what the other has given, and both give
addresses in the same order.

Where this one differs, on purpose:
- DEL, CHECK and GC need only `dataDir` and the name, so that bad ranges leave no reservation.
- A failed ADD releases what it reserved itself, not all that (id, ifname) has.
- A reservation appears complete, by link(2): an empty file would have no owner to release it.
- A rangeStart after rangeEnd is refused; the real one gives addresses outside the subnet.
- A gateway of the other IP version is refused: no route can lead there.
- CNI_ARGS other than IP are left to the caller.
- STATUS does not report a full network: the node would become NotReady and its pods evicted for
  want of one address.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from cni.errors import AttachmentExists, CheckFailed, IOFailure, IpamFailed, NotReady
from cni.ipam.hostlocal.config import (
    Address,
    Range,
    directory_of,
    range_sets,
    requested,
    resolv_conf,
    section,
)
from cni.ipam.hostlocal.store import Store, locked, old_owner_of, owner_of
from cni.spec import result
from cni.spec.types import IP, AttachmentKey, Result


@dataclass(frozen=True)
class IpamRequest:
    """ADD, DEL or CHECK of one attachment: the decoded network configuration and CNI_ARGS."""

    key: AttachmentKey
    network: str
    config: dict[str, Any]
    args: dict[str, str]

    @property
    def owner(self) -> bytes:
        """The owner that its reservations name."""
        return owner_of(self.key)


def add(request: IpamRequest) -> Result:
    """Reserve one address of each range set, in the round-robin order of the real plugin.

    Raises BadConfig, AttachmentExists (it has an address already, which stays), IpamFailed (no
    address is free, or not the one asked for), IOFailure; nothing new is reserved then.
    """
    sets = range_sets(request.config)
    wanted = requested(request.config, request.args)
    ipam = section(request.config)
    routes = result.load({"routes": ipam.get("routes")}, "ipam").routes
    dns = resolv_conf(ipam)
    reserved: list[str] = []
    ips: list[IP] = []
    with locked(directory_of(request.network, request.config)) as store:
        try:
            for number, ranges in enumerate(sets):
                address, range_ = _allocate(store, number, ranges, wanted, request)
                reserved.append(str(address))
                ips.append(IP(f"{address}/{range_.prefix}", str(range_.gateway)))
            _refuse_left_over(wanted, request.network)
        except BaseException:
            for name in reserved:
                with suppress(OSError):
                    store.release(name)
            raise
    return Result(ips=tuple(ips), routes=routes, dns=dns)


def delete(request: IpamRequest) -> None:
    """Release the addresses of an attachment; none is success. Raises BadConfig, IOFailure."""
    directory = directory_of(request.network, request.config)
    if not os.path.isdir(directory):
        return
    with locked(directory) as store:
        names = store.held(request.owner) or store.held(old_owner_of(request.key))
        store.release_all(names)


def check(request: IpamRequest) -> None:
    """Check that an attachment has an address. Raises CheckFailed, BadConfig, IOFailure."""
    directory = directory_of(request.network, request.config)
    if os.path.isdir(directory):
        with locked(directory) as store:
            if store.held(request.owner) or store.held(old_owner_of(request.key)):
                return
    raise CheckFailed(f"host-local: {directory} holds no address of {request.key}; expected one")


def collect(network: str, config: Mapping[str, Any], valid: Collection[AttachmentKey]) -> None:
    """Release every address of the network whose owner is not in `valid`.

    A reservation that names the container alone stays while that has any valid attachment. Raises
    BadConfig, IOFailure (all the others have been released).
    """
    directory = directory_of(network, config)
    if not os.path.isdir(directory):
        return
    owners = {owner_of(key) for key in valid} | {old_owner_of(key) for key in valid}
    with locked(directory) as store:
        store.load()
        store.release_all([n for n, owner in store.entries.items() if owner not in owners])


def status(network: str, config: Mapping[str, Any]) -> None:
    """Check what every ADD needs.

    Raises BadConfig for a configuration that ADD would refuse, NotReady for an unusable store.
    """
    range_sets(config)
    result.load({"routes": section(config).get("routes")}, "ipam")
    resolv_conf(section(config))
    try:
        with locked(directory_of(network, config)):
            pass
    except IOFailure as e:
        raise NotReady(e.msg, e.details) from e


def _refuse_left_over(wanted: Mapping[Address, str], network: str) -> None:
    """Refuse requested addresses that no range set could give."""
    if wanted:
        where = ", ".join(f"{key} {address}" for address, key in wanted.items())
        raise IpamFailed(f"{where}: in no free range set of network {network}; ask for another")


def _allocate(
    store: Store,
    number: int,
    ranges: list[Range],
    wanted: dict[Address, str],
    request: IpamRequest,
) -> tuple[Address, Range]:
    """Reserve an address of range set `number`; one of `wanted` is taken off that list."""
    for address, key in list(wanted.items()):
        range_ = next((r for r in ranges if address in r), None)
        if range_ is not None:
            del wanted[address]
            if address == range_.gateway:
                raise IpamFailed(f"{key}: {address} is the gateway of {range_}; ask for another")
            if not store.reserve(address, request.owner, number):
                raise IpamFailed(f"{key}: {address} of {range_} is taken; ask for another")
            return address, range_
    for name in store.held(request.owner) + store.held(old_owner_of(request.key)):
        if any(ip_address(name) in r for r in ranges):
            raise AttachmentExists(
                f"{name} has been allocated to {request.key}, duplicate allocation is not allowed"
            )
    for address, range_ in _candidates(store, ranges, store.last(number)):
        if store.reserve(address, request.owner, number):
            return address, range_
    text = ", ".join(map(str, ranges))
    raise IpamFailed(
        f"no address is left in {text} of network {request.network}; extend it or delete pods"
    )


def _candidates(
    store: Store, ranges: list[Range], last: Address | None
) -> Iterator[tuple[Address, Range]]:
    """The free addresses in round robin, from the one after `last` through all ranges to it."""
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
