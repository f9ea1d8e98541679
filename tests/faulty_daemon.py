"""The zygote of vmlinkds in which one step can go wrong, as the file $VMLINK_FAULT says in JSON.

    {"step": "Veth", "phase": "do", "when": "after", "action": "kill"}

`action` is error (an exception that nobody expects), kill (SIGKILL to this process) or hold (tell
the unix socket $VMLINK_FAULT.gate, and go on when it has answered). Every kind of Step is covered,
and beside them `Commit`, which ends an ADD. The file is read anew each time.

The arguments are modules of tests, whose modes are loaded. For each line of stdin, an object of
"namespace", "log", "env" and "argv", a vmlinkd is forked; its process id is printed, and its exit
status when it has ended. Before that comes a 0: it is ready.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from cni.attach.context import Context
from cni.attach.facts import F, Fact, Facts
from cni.attach.plan import Step
from cni.daemon import main as daemon
from cni.daemon.engine import Engine
from cni.kernel.netns import CLONE_NEWNET, libc
from cni.modes import MODES
from cni.modes.steps.addresses import RefusedAddresses
from cni.ovs import connection

_PR_SET_PDEATHSIG = 1
UNNAMED = (RefusedAddresses,)  # put when the step fails, so no later step can need it


def strike(step: str, phase: str, when: str) -> None:
    control = os.environ["VMLINK_FAULT"]
    try:
        fault = json.loads(Path(control).read_text())
    except FileNotFoundError:
        return
    if (fault["step"], fault["phase"], fault["when"]) != (step, phase, when):
        return
    if fault["action"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault["action"] == "hold":
        with socket.socket(socket.AF_UNIX) as gate:
            gate.connect(control + ".gate")
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


def guarded(original: Callable[[Step, Context], None]) -> Callable[[Step, Context], None]:
    """A `do` that may read no fact but those that its step names."""

    def do(step: Step, cx: Context) -> None:
        named = {*step.required(), *step.provides}
        known = cx.facts

        class Named(Facts):
            def __getitem__(self, kind: type[F]) -> F:
                assert kind in named, f"{step} reads {kind.__name__} and does not name it"
                return known[kind]

            def get(self, kind: type[F]) -> F | None:
                return known.get(kind)

            def put(self, *facts: Fact) -> None:
                unnamed = {type(fact) for fact in facts} - {*step.provides, *UNNAMED}
                assert not unnamed, f"{step} provides {unnamed} and does not name it"
                known.put(*facts)

        cx.facts = Named()
        try:
            original(step, cx)
        finally:
            cx.facts = known

    return do


def prepare() -> None:
    assert MODES, "importing the modes is what registers their steps"
    assert connection, "vmlinkd loads it late"
    for name, kind in Step.kinds.items():
        kind.do = guarded(kind.do)  # type: ignore[assignment, method-assign]
        for phase in ("do", "bind", "renew", "undo"):
            setattr(kind, phase, struck(getattr(kind, phase), name, phase))
    Engine._complete = struck(Engine._complete, "Commit", "do")  # type: ignore[method-assign]


def main() -> int:
    for module in sys.argv[1:]:
        import_module(module).load()
    prepare()
    print(0, flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            return vmlinkd(**json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return 0


def vmlinkd(namespace: str, log: str, env: dict[str, str], argv: list[str]) -> int:
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with (
        Path(os.devnull).open() as nothing,
        Path(log).open("ab") as output,
        Path(namespace).open() as netns,
    ):
        for file, fd in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(file.fileno(), fd)
        libc.setns(netns.fileno(), CLONE_NEWNET)
    os.environ.update(env)
    return daemon.main(argv)


if __name__ == "__main__":
    sys.exit(main())
