"""The log's lines: JSON, and where the journal reads them the priority before it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import logging
from cni.daemon import logs
logs.set_up("debug")
log = logging.getLogger("x")
for level in (10, 20, 30, 40, 50):
    log.log(level, "at %s", level)
logs.last_words("the end")
"""


@pytest.mark.parametrize("stream", ["journal", "a file", "another stream"])
def test_the_journal_gets_priorities(tmp_path: Path, stream: str) -> None:
    path = tmp_path / "stderr"
    with path.open("wb") as stderr:
        status = os.fstat(stderr.fileno())
        name = {"journal": f"{status.st_dev}:{status.st_ino}", "another stream": "1:2"}.get(stream)
        env = {**os.environ, **({"JOURNAL_STREAM": name} if name else {})}
        if not name:
            env.pop("JOURNAL_STREAM", None)
        subprocess.run([sys.executable, "-c", PROGRAM], stderr=stderr, env=env, check=True)
    *lines, last = path.read_text().splitlines()
    expected = ["<7>", "<6>", "<4>", "<3>", "<2>"] if stream == "journal" else [""] * 5
    assert [line[: line.index("{")] for line in lines] == expected
    levels = [json.loads(line[line.index("{") :])["level"] for line in lines]
    assert levels == [logging.getLevelName(n).lower() for n in (10, 20, 30, 40, 50)]
    assert last == ("<3>the end" if stream == "journal" else "the end")
