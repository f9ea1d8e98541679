"""How far a run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from typing import TextIO

from bench.report import words

_WIDTH = 24
_REFRESH = 1.0  # seconds; what is measured shares the cores with it


class Progress:
    """`total` is the sum of the seconds that the tasks said they may take.

    What they took so far, beside what they said, scales the time left. Without `stream`: stderr.
    """

    def __init__(self, total: float, stream: TextIO | None = None) -> None:
        self._total = total or 1.0
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._said = self._taken = 0.0  # of the tasks that are done
        self._name, self._seconds, self._start = "", 0.0, time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        if self._terminal:
            self._ticker.start()

    def start(self, name: str, seconds: float) -> None:
        with self._lock:
            self._name, self._seconds, self._start = name, seconds, time.monotonic()
        self._show(self.line())

    def done(self) -> None:
        with self._lock:
            self._said += self._seconds
            self._taken += time.monotonic() - self._start
            self._name, self._seconds = "", 0.0

    def say(self, text: str) -> None:
        """A line that stays."""
        clear = "\r\033[K" if self._terminal else ""
        print(f"{clear}{text}", file=self._stream, flush=True)

    def end(self) -> None:
        self._ended.set()
        if self._terminal:
            self._ticker.join()
            print("\r\033[K", end="", file=self._stream, flush=True)

    def line(self) -> str:
        """Bar, percent, time left and what is running."""
        with self._lock:
            scale = self._taken / self._said if self._said else 1.0
            running = (time.monotonic() - self._start) / scale if self._name and scale else 0.0
            # One that takes longer than it said is not done for that.
            done = self._said + min(running, self._seconds * 0.95)
            share = min(done / self._total, 1.0)
            left = words.duration(max(self._total - done, 0.0) * scale)
            name = self._name
        bar = ("#" * round(share * _WIDTH)).ljust(_WIDTH, ".")
        return f"{bar} {share:4.0%}  {left} left  {name}"

    def _tick(self) -> None:
        while not self._ended.wait(_REFRESH):
            self._show(self.line())

    def _show(self, line: str) -> None:
        if not self._terminal:
            self.say(line.lstrip("#.").strip())
            return
        columns = shutil.get_terminal_size().columns
        print(f"\r\033[K{line[: columns - 1]}", end="", file=self._stream, flush=True)
