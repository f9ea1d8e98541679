"""How far a run is: one line that is overwritten on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from typing import TextIO

from bench.report.formats import duration

_WIDTH = 24  # characters of the bar
_REFRESH = 1.0  # seconds; refreshing takes CPU from what is measured


class StatusLine:
    """A line on `stream` (stderr) that shows what is going on."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self.on_terminal = self._stream.isatty()

    def show(self, text: str) -> None:
        """Show a text; on a terminal it replaces the one before."""
        if not self.on_terminal:
            self.say(text)
            return
        columns = shutil.get_terminal_size().columns
        self._write(f"\r\033[K{text[: columns - 1]}")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._write(f"{self._clear}{text}\n")

    def end(self) -> None:
        """Remove the line from a terminal."""
        self._write(self._clear)

    @property
    def _clear(self) -> str:
        return "\r\033[K" if self.on_terminal else ""

    def _write(self, text: str) -> None:
        print(text, end="", file=self._stream, flush=True)


class Progress:
    """A progress bar for tasks whose durations are estimated.

    `total` is the sum of the estimates in seconds. The time left is scaled by how long the tasks so
    far took, compared with their estimates.
    """

    def __init__(self, total: float, stream: TextIO | None = None) -> None:
        self._total = total or 1.0
        self._status = StatusLine(stream)
        self._estimated = self._taken = 0.0  # of the tasks that are done
        self._name, self._seconds, self._start = "", 0.0, time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        if self._status.on_terminal:
            self._ticker.start()

    def start(self, name: str, seconds: float) -> None:
        """A task begins, which takes an estimated number of seconds."""
        with self._lock:
            self._name, self._seconds, self._start = name, seconds, time.monotonic()
        self._show()

    def done(self) -> None:
        """The task has ended."""
        with self._lock:
            self._estimated += self._seconds
            self._taken += time.monotonic() - self._start
            self._name, self._seconds = "", 0.0

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._status.say(text)

    def end(self) -> None:
        """Remove the bar."""
        self._ended.set()
        if self._status.on_terminal:
            self._ticker.join()
        self._status.end()

    def line(self) -> str:
        """Bar, percent, time left and the task that runs."""
        with self._lock:
            scale = self._taken / self._estimated if self._estimated else 1.0
            running = (time.monotonic() - self._start) / scale if self._name and scale else 0.0
            # A task that takes longer than estimated is still not done.
            done = self._estimated + min(running, self._seconds * 0.95)
            share = min(done / self._total, 1.0)
            left = duration(max(self._total - done, 0.0) * scale)
            name = self._name
        bar = ("#" * round(share * _WIDTH)).ljust(_WIDTH, ".")
        return f"{bar} {share:4.0%}  {left} left  {name}"

    def _tick(self) -> None:
        while not self._ended.wait(_REFRESH):
            self._show()

    def _show(self) -> None:
        line = self.line()
        self._status.show(line if self._status.on_terminal else line.lstrip("#.").strip())
