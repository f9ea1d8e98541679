"""What is asked of Open vSwitch's database, and what is seen of it.

A leaf: the operations of port_ops.py and ovn.py need nothing else of this package's connection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from cni.errors import DeadlineExceeded, TryAgain
from cni.spec.types import AttachmentKey

Operations = list[dict[str, Any]]  # RFC 7047, section 5.2


class Tables(Protocol):
    """The replica of the database, as far as operations look at it.

    It has the bridges, and of the tables in `schema.OWNED` only the rows with our owner's mark. A
    row has its columns as attributes (python-ovs, `ovs.db.idl.Row`).
    """

    def port(self, key: AttachmentKey) -> Any | None:
        """The row in Port of this attachment."""
        ...

    def interface(self, name: str) -> Any | None:
        """The row in Interface of this name."""
        ...

    def rows(self, table: str) -> Collection[Any]:
        """All rows of `table` that the replica has."""
        ...

    def bridges(self) -> dict[str, str]:
        """The datapath type of each bridge, by its name."""
        ...


@dataclass(frozen=True)
class View:
    """What other threads see of the switch, as of one moment.

    `bridges` maps names to datapath types, and is None before the first connection.
    `external_ids` are those of the table Open_vSwitch, `vhost_directory` is below ovs-vswitchd's
    run directory. Source: ovs-vswitchd.conf.db(5), table Open_vSwitch.
    """

    connected: bool = False
    bridges: Mapping[str, str] | None = None
    dpdk: bool = False
    userspace_tso: bool = False
    vhost_directory: str = ""
    external_ids: Mapping[str, str] = field(default_factory=dict)


class Operation(ABC):
    """One change of the database. Its methods run in the connection's thread."""

    @property
    def interface(self) -> str:
        """The name of the Interface that the operation waits for; "" when a commit is enough."""
        return ""

    @abstractmethod
    def compose(self, tables: Tables, again: bool) -> Operations:
        """Return what to send; nothing to send is an empty list.

        `again` is true when an earlier try may or may not have been committed. Raises VmlinkError,
        which becomes the answer to the caller.
        """

    def settled(self, tables: Tables) -> bool:
        """Tell whether it is done: asked after the commit and each change of `interface`.

        Raises VmlinkError when it has failed.
        """
        return True


class ReadOnly(Operation):
    """An operation that writes nothing: it reads the replica in the connection's thread."""

    def compose(self, tables: Tables, again: bool) -> Operations:
        """Return nothing to send."""
        return []

    def settled(self, tables: Tables) -> bool:
        """Read, and be done."""
        self.read(tables)
        return True

    @abstractmethod
    def read(self, tables: Tables) -> None:
        """Look at the rows. Raises VmlinkError, which becomes the answer to the caller."""


class Pending:
    """An operation on its way through the connection's thread."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.again = False
        self.abandoned = False
        self.future: Future[None] = Future()

    def wait(self, seconds: float, late: str) -> None:
        """Wait until it is settled, at most this many seconds.

        Raises the operation's own error, TryAgain when vmlinkd stops, or DeadlineExceeded with the
        message `late`: the operation is abandoned then and not tried again, but if it was sent, it
        may still be committed.
        """
        try:
            self.future.result(max(seconds, 0))
        except TimeoutError as e:
            self.abandon()
            raise DeadlineExceeded(late) from e
        except CancelledError as e:
            raise TryAgain("vmlinkd is stopping; try again when it runs") from e

    def abandon(self) -> bool:
        """Give up waiting. True if it was never sent, so that there is nothing to undo."""
        self.abandoned = True
        return self.future.cancel()
