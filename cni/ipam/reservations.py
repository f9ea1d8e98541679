"""Which pod of this node has which address, of those that kube-ovn has given out."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from cni.errors import TryAgain
from cni.spec.types import AttachmentKey


@dataclass(frozen=True)
class Reservation:
    """An attachment's right to its addresses; `holder` is the logical port that has them.

    Another container with the same holder is the same pod with a new sandbox.
    """

    key: AttachmentKey
    holder: str


class Reservations:
    """The addresses in use, by logical switch: two switches may have the same address.

    Threads may share one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str], Reservation] = {}

    def take(self, reservation: Reservation, switch: str, addresses: Iterable[str]) -> None:
        """Take all of the addresses or none. Raises TryAgain while another pod has one."""
        wanted = [(switch, address) for address in addresses]
        with self._lock:
            for place in wanted:
                held = self._held.get(place)
                if held and held.holder != reservation.holder:
                    raise TryAgain(
                        f"annotation ip_address: {place[1]} of {switch or 'its subnet'} is still "
                        f"that of {held.holder} ({held.key}) on this node; delete that pod, or "
                        f"give {reservation.holder} another address"
                    )
            self._held.update(dict.fromkeys(wanted, reservation))

    def release(self, key: AttachmentKey) -> None:
        """Give back what the attachment still has: its pod's next sandbox may have taken it."""
        with self._lock:
            self._held = {place: c for place, c in self._held.items() if c.key != key}
