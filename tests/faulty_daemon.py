"""vmlinkd in which one step can go wrong, as the file $VMLINK_FAULT says in JSON.

    {"step": "Veth", "phase": "do", "when": "after", "action": "kill"}

`action` is error (an exception that nobody expects), kill (SIGKILL to this process) or hold (tell
the unix socket $VMLINK_FAULT.gate, and go on when it has answered). Every kind of Step is covered,
and beside them `Commit`, which ends an ADD. The file is read anew each time.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from cni import daemon
from cni.engine import Engine
from cni.modes import MODES
from cni.plan import Step

CONTROL = os.environ["VMLINK_FAULT"]


def strike(step: str, phase: str, when: str) -> None:
    try:
        with open(CONTROL) as f:
            fault = json.load(f)
    except FileNotFoundError:
        return
    if (fault["step"], fault["phase"], fault["when"]) != (step, phase, when):
        return
    if fault["action"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault["action"] == "hold":
        with socket.socket(socket.AF_UNIX) as gate:
            gate.connect(CONTROL + ".gate")
            gate.recv(1)
    else:
        raise OSError(errno.EIO, f"injected {when} {step}.{phase}")


def struck(original: Callable[..., Any], step: str, phase: str) -> Callable[..., Any]:
    def method(*args: Any) -> Any:
        strike(step, phase, "before")
        result = original(*args)
        strike(step, phase, "after")
        return result

    method.__name__ = phase
    return method


def prepare() -> None:
    assert MODES, "importing the modes is what registers their steps"
    for name, kind in Step.kinds.items():
        for phase in ("do", "undo"):
            setattr(kind, phase, struck(getattr(kind, phase), name, phase))
    Engine._complete = struck(Engine._complete, "Commit", "do")  # type: ignore[method-assign]


if __name__ == "__main__":
    prepare()
    sys.exit(daemon.main())
