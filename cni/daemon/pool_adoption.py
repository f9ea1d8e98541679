"""Ports of a former process taken over, and those that no longer fit or are lost removed."""

from __future__ import annotations

import logging

from cni.attach import plan
from cni.config.network import NetConf
from cni.daemon.pool_shelf import Shelf
from cni.daemon.pool_store import PreparedPort
from cni.daemon.preparer import Preparer
from cni.errors import CheckFailed, VmlinkError
from cni.kernel.netlink import Netlink

log = logging.getLogger("vmlink")


def adopt(preparer: Preparer, shelf: Shelf, conf: NetConf | None, netlink: Netlink) -> None:
    """Make ready what a former process left and passes its check; doom what does not fit.

    Without a `conf` nothing fits.
    """
    broken: list[PreparedPort] = []
    for port in shelf.former():
        try:
            plan.verify(port.plan.steps, preparer.context(port, netlink))
        except CheckFailed as e:
            log.warning("a prepared port of %s is removed: %s", shelf.name, e)
            broken.append(port)
    shelf.adopt(broken, lambda port: conf is not None and preparer.fits(port, port.key, conf))


def remove_doomed(preparer: Preparer, shelf: Shelf, netlink: Netlink) -> None:
    """Undo the ports that are to go. Raises what the first undo that fails raises."""
    for port in shelf.doomed():
        plan.revert(port.plan, preparer.context(port, netlink))
        shelf.files.forget(port)
        shelf.removed(port)


def sweep(preparer: Preparer, port_id: str, netlink: Netlink) -> None:
    """Remove what is left of a prepared port whose rows neither a file nor a record named."""
    cx = preparer.context(PreparedPort(port_id, []), netlink)
    for mode in preparer.modes.values():
        try:
            mode.sweep(cx)
        except (VmlinkError, OSError) as e:
            log.warning("what is left of the prepared port %s stays: %s", port_id, e)
