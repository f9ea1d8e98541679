"""A JSON parser for python-ovs where its C extension is not built, on the standard library's.

python-ovs's own in Python looks at each character and takes some thirty times as long.
"""

from __future__ import annotations

import json
import re
from typing import Any

# A lone quote begins a string whose end has not been received yet.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}"]', re.DOTALL)


class Parser:
    """The part of `ovs.json.Parser` that `ovs.jsonrpc.Connection` uses.

    Text comes in pieces, and what follows an object belongs to the next one; so this looks only
    for the object's end, and `json` does the rest.
    """

    def __init__(self) -> None:
        self._text = ""
        self._seen = 0
        self._depth = 0
        self._done = False

    def feed(self, text: str) -> int:
        """Take a piece of text in, and return how many of its characters belong to this object."""
        before = len(self._text)
        self._text += text
        if not self._text.lstrip().startswith("{"):
            self._done = bool(self._text.strip())
            return len(text)
        while (token := _TOKEN.search(self._text, self._seen)) and token[0] != '"':
            self._seen = token.end()
            self._depth += {"{": 1, "}": -1}.get(token[0], 0)
            if not self._depth and token[0] == "}":
                self._done = True
                self._text = self._text[: self._seen]
                return self._seen - before
        return len(text)

    def is_done(self) -> bool:
        """Tell whether the object is complete, or cannot be one."""
        return self._done

    def finish(self) -> Any:
        """Return the value, or a text that says what is wrong, as python-ovs expects."""
        try:
            return json.loads(self._text)
        except ValueError as e:
            return f"not JSON: {e}"
