"""One request in, one answer out: parse, serve, write JSON, log a line."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from cni.cancel import Cancel
from cni.daemon.engine import Call, Engine
from cni.errors import BadEnvironment, VmlinkError
from cni.kernel.netns import Namespace
from cni.spec import request as spec
from cni.spec import result as results
from cni.spec.protocol import TRACING, Frame
from cni.spec.types import Request, Result

log = logging.getLogger("vmlink")

_TEXT_MAX = 8192


@dataclass(frozen=True)
class Answer:
    """Exit code and stdout for the client; `line` is for the log, once the client has it."""

    code: int
    body: bytes
    line: dict[str, Any]

    def log(self) -> None:
        """Write the log line of the request."""
        level = logging.WARNING if self.code else logging.INFO
        log.log(level, "request", extra={"fields": self.line})


def answer(
    engine: Engine, frame: Frame, fd: int | None, seconds: float, gone: Callable[[], bool]
) -> Answer:
    """Serve one request. Takes `fd` over; never raises an Exception.

    A caller who hangs up has an ADD undone, and anything else finished all the same.
    """
    start = time.perf_counter()
    notes: dict[str, Any] = {}
    body: dict[str, Any] | None = None
    try:
        done, version = _serve(engine, frame, fd, seconds, gone, notes)
        code, body = 0, results.dump(done, version) if done else None
    except VmlinkError as e:
        code, body = e.code, _error(e, frame)
    except Exception as e:
        log.exception("internal error")
        error = VmlinkError(f"internal error: {type(e).__name__}: {e}")
        code, body = error.code, _error(error, frame)
    out = b"" if body is None else json.dumps(body).encode() + b"\n"
    line = _line(frame, time.perf_counter() - start, notes)
    return Answer(code, out, line | _outcome(code, body))


def undo_unheard(engine: Engine, frame: Frame, code: int, seconds: float) -> None:
    """The runtime never learns of an ADD whose answer could not be sent."""
    if code == 0 and frame.env.get("CNI_COMMAND") == "ADD":
        delete = Frame({**frame.env, "CNI_COMMAND": "DEL"}, frame.stdin)
        answer(engine, delete, None, seconds, lambda: False).log()


def _serve(
    engine: Engine,
    frame: Frame,
    fd: int | None,
    seconds: float,
    gone: Callable[[], bool],
    notes: dict[str, Any],
) -> tuple[Result | None, str]:
    with ExitStack() as stack:
        if fd is not None:
            stack.callback(os.close, fd)
        request = spec.parse(frame.env, frame.stdin)
        if request.flaws:
            notes["passed_over"] = list(request.flaws)
        cancel = Cancel(seconds, gone if request.verb == "ADD" else lambda: False)
        if pod := _namespace(request, fd):
            stack.enter_context(pod)
        return engine.handle(Call(request, cancel, pod, notes)), request.version


def _namespace(request: Request, fd: int | None) -> Namespace | None:
    """DEL is served without a namespace when the descriptor is not one: it is best effort."""
    if fd is None:
        return None
    try:
        return Namespace.from_fd(os.dup(fd), request.netns_path)
    except BadEnvironment:
        if request.verb == "DEL":
            return None
        raise


def _error(e: VmlinkError, frame: Frame) -> dict[str, Any]:
    version = _short(spec.version_of(frame.stdin))
    return {
        "cniVersion": version,
        "code": e.code,
        "msg": _short(e.msg),
        "details": _short(e.details),
    }


def _short(text: str) -> str:
    """Messages quote what came in, which may be a MiB and five times that when it is escaped."""
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}... ({len(text)} characters)"


def _line(frame: Frame, seconds: float, notes: dict[str, Any]) -> dict[str, Any]:
    line: dict[str, Any] = {
        "verb": frame.env.get("CNI_COMMAND", ""),
        "container": frame.env.get("CNI_CONTAINERID", ""),
        "ifname": frame.env.get("CNI_IFNAME", ""),
        "ms": round(seconds * 1000, 2),
        **notes,
        **{k.lower(): v for k, v in frame.env.items() if k in TRACING},
    }
    if "steps" in notes:
        line["steps"] = {k: round(v * 1000, 2) for k, v in notes["steps"].items()}
    return line


def _outcome(code: int, body: dict[str, Any] | None) -> dict[str, Any]:
    return {"code": code, "error": body["msg"]} if code and body else {"code": code}
