"""vmlinkd's log on stderr: a line of JSON for each message."""

from __future__ import annotations

import json
import logging
import time


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


def set_up(level: str, formatter: logging.Formatter | None = None) -> None:
    """Send all messages from `level` up to stderr, as JSON lines unless another format is passed.

    `level` is one of debug, info, warning and error.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(formatter or JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler])
