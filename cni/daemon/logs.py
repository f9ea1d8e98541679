"""vmlinkd's log on stderr: a line of JSON for each message.

Where the journal reads it, each line begins with its priority. Sources: sd-daemon(3);
systemd.exec(5), JOURNAL_STREAM.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import TextIO

_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)


class JsonLines(logging.Formatter):
    """Formats a message as an object: time (UTC), level, msg, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; an exception's traceback is in `trace`."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Prioritized(logging.Formatter):
    """Formats a message as another formatter does, behind its priority."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, which begins like `<4>`."""
        return priority(record.levelno) + self._inner.format(record)


def priority(level: int) -> str:
    """The prefix by which the journal knows a line's priority, one of syslog(3)."""
    return f"<{next((p for least, p in _PRIORITIES if level >= least), 7)}>"


def journal_reads(stream: TextIO) -> bool:
    """Whether a stream is the one by which systemd passes a service's output on."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def last_words(message: str) -> None:
    """Tell on stderr why the program ends; the log may not be set up yet."""
    prefix = priority(logging.ERROR) if journal_reads(sys.stderr) else ""
    print(prefix + message, file=sys.stderr)


def set_up(level: str, formatter: logging.Formatter | None = None) -> None:
    """Send all messages from `level` up to stderr, as JSON lines unless another format is passed.

    `level` is one of debug, info, warning and error.
    """
    handler = logging.StreamHandler()
    lines = formatter or JsonLines()
    handler.setFormatter(Prioritized(lines) if journal_reads(sys.stderr) else lines)
    logging.basicConfig(level=level.upper(), handlers=[handler])
