"""When to give up on a request: its deadline, and a caller that may hang up."""

from __future__ import annotations

import time
from collections.abc import Callable

from cni.errors import ClientGone, DeadlineExceeded


class Cancel:
    """A deadline `seconds` from now, and `gone`, which tells whether the caller has hung up.

    `began` is now, when the request came, in seconds of CLOCK_MONOTONIC.
    """

    def __init__(self, seconds: float, gone: Callable[[], bool] = lambda: False) -> None:
        self.began = time.monotonic()
        self._limit = seconds
        self._deadline = self.began + seconds
        self._gone = gone

    def check(self) -> None:
        """Raise ClientGone or DeadlineExceeded when the work is not worth going on with."""
        if self._gone():
            raise ClientGone("the caller hung up before it had an answer; send the request again")
        if self.remaining() <= 0:
            raise DeadlineExceeded(
                f"not done within {self._limit:g} s; try again, and see in vmlinkd's log which "
                "step takes so long"
            )

    def remaining(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self._deadline - time.monotonic()

    def disarm(self, seconds: float = 30) -> None:
        """Start a new deadline for undoing, which goes on even if the caller has hung up."""
        self._gone = lambda: False
        self._limit = seconds
        self._deadline = time.monotonic() + seconds
