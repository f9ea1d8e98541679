"""A network namespace of one's own to try something in, without a trace on the node."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from cni.errors import KernelRefused
from cni.kernel.netlink import Netlink
from cni.kernel.netns import CLONE_NEWNET, libc

T = TypeVar("T")


def in_scratch_namespace(work: Callable[[Netlink], T]) -> T:
    """Run `work` in a new network namespace and return what it returns.

    It runs in a thread of its own, and the namespace ends with that thread, unless `work` has
    opened a descriptor of it. Raises KernelRefused, or what `work` raises.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            _unshare()
            with Netlink() as netlink:
                done.set_result(work(netlink))
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="vmlink-scratch")
    thread.start()
    thread.join()
    return done.result()


def _unshare() -> None:
    if libc.unshare(CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise KernelRefused(f"cannot make a network namespace: {reason}; be root")
