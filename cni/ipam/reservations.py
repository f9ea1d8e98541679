"""Who has which address on this node, of those that kube-ovn gave out."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from cni.errors import TryAgain
from cni.spec.types import AttachmentKey


@dataclass(frozen=True)
class Claim:
    """`holder` is the logical port: another container with the same one is the same pod anew."""

    key: AttachmentKey
    holder: str


class Claims:
    """Addresses by logical switch, since two switches may have the same one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str], Claim] = {}

    def take(self, claim: Claim, switch: str, addresses: Iterable[str]) -> None:
        """All or none. Raises TryAgain when another pod has one, until its DEL."""
        wanted = [(switch, address) for address in addresses]
        with self._lock:
            for place in wanted:
                held = self._held.get(place)
                if held and held.holder != claim.holder:
                    raise TryAgain(
                        f"annotation ip_address: {place[1]} of {switch or 'its subnet'} is still "
                        f"that of {held.holder} ({held.key}) on this node; delete that pod, or "
                        f"give {claim.holder} another address"
                    )
            self._held.update(dict.fromkeys(wanted, claim))

    def release(self, key: AttachmentKey) -> None:
        """What the attachment still has; another container of its pod may have taken it over."""
        with self._lock:
            self._held = {place: c for place, c in self._held.items() if c.key != key}
