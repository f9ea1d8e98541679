"""IPAM of one request: `host-local` in this process, any other `ipam.type` executed.

Source: CNI specification, section "Delegation". A plugin is an executable file in a directory of
CNI_PATH; it gets the request's CNI_* variables, PATH, and the whole stdin. Its stdin, stdout and
stderr are memfds and not pipes, so that neither side can block the other.

GC and STATUS came with CNI 1.1.0. A plugin that does not know them, such as those of Debian
(1.1.1), answers with code 4 and names CNI_COMMAND. GC then has nothing to do, and STATUS asks for
VERSION instead: whether an ADD with this cniVersion can succeed. Newer plugins succeed in both.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cni.errors import BadConfig, DeadlineExceeded, IpamFailed, NotReady, VmlinkError
from cni.ipam.hostlocal import verbs
from cni.spec import result
from cni.spec.types import AttachmentKey, Request, Result

HOST_LOCAL = "host-local"
SECONDS = 30.0  # how long an executed plugin may take, unless the caller says otherwise

_OUTPUT_LIMIT = 4 << 20
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Call:
    """What IPAM needs of a request; for GC and STATUS `key` is None.

    `config` is `stdin` decoded, `args` is CNI_ARGS parsed, `env` has the request's CNI_* variables.
    """

    network: str
    config: dict[str, Any]
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    key: AttachmentKey | None = None
    args: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, request: Request) -> Call:
        """Return what IPAM needs of the request."""
        conf = request.conf
        return cls(conf["name"], conf, request.env, request.stdin, request.key, request.args)

    @property
    def type(self) -> str:
        """The name of the IPAM plugin. Raises BadConfig."""
        ipam = self.config.get("ipam")
        kind = ipam.get("type") if isinstance(ipam, dict) else None
        if not isinstance(kind, str) or not kind:
            raise BadConfig("ipam.type: required, the name of an IPAM plugin such as host-local")
        return kind

    def host_local(self) -> verbs.IpamRequest:
        """The same as host-local's verbs take it."""
        assert self.key is not None, "ADD, DEL and CHECK are about one attachment"
        return verbs.IpamRequest(self.key, self.network, self.config, self.args)


def begin_add(call: Call) -> Callable[[float], Result]:
    """Start an ADD; returns a function that waits for its result, so many seconds at most.

    host-local has finished on return. An executed plugin goes on meanwhile; `delete` of the same
    attachment kills it first, so that an ADD without a caller leaves nothing. The function returns
    or raises the same each time.

    Raises BadConfig, BadEnvironment, IpamFailed and what hostlocal.verbs.add raises; the function
    raises IpamFailed with the plugin's code and message, or DeadlineExceeded (plugin killed).
    """
    if call.type == HOST_LOCAL:
        done = verbs.add(call.host_local())
        return lambda _seconds: done
    child = _Child(call, "ADD")
    pending = (call.network, call.key)
    _pending[pending] = child
    outcome: list[Result | VmlinkError] = []

    def wait(seconds: float) -> Result:
        if not outcome:
            try:
                outcome.append(read_result(child.kind, child.finish(seconds)))
            except VmlinkError as e:
                outcome.append(e)
            finally:
                _pending.pop(pending, None)
        if isinstance(outcome[0], VmlinkError):
            raise outcome[0]
        return outcome[0]

    return wait


def delete(call: Call, seconds: float = SECONDS) -> None:
    """Release the addresses of an attachment. Raises as `begin_add` and its function."""
    if call.type == HOST_LOCAL:
        verbs.delete(call.host_local())
        return
    if unfinished := _pending.pop((call.network, call.key), None):
        unfinished.kill()
    _Child(call, "DEL").finish(seconds)


def check(call: Call, seconds: float = SECONDS) -> None:
    """Check that an attachment has its addresses.

    Raises CheckFailed (host-local), otherwise as `begin_add` and its function.
    """
    if call.type == HOST_LOCAL:
        verbs.check(call.host_local())
    else:
        _Child(call, "CHECK").finish(seconds)


def collect(call: Call, valid: Collection[AttachmentKey], seconds: float = SECONDS) -> None:
    """Release the addresses of all attachments that are not `valid`, for the verb GC.

    An executed plugin reads that list from stdin; one that does not know GC is left alone. Raises
    as `begin_add` and its function.
    """
    if call.type == HOST_LOCAL:
        verbs.collect(call.network, call.config, valid)
        return
    try:
        _Child(call, "GC").finish(seconds)
    except IpamFailed as e:
        if not _verb_unknown(e):
            raise


def status(call: Call, seconds: float = SECONDS) -> None:
    """Check that an ADD can succeed, for the verb STATUS.

    Raises NotReady, otherwise as `begin_add` and its function.
    """
    if call.type == HOST_LOCAL:
        verbs.status(call.network, call.config)
        return
    try:
        _Child(call, "STATUS").finish(seconds)
    except IpamFailed as e:
        if not _verb_unknown(e):
            raise
        _version_served(call, seconds)


def find(kind: str, cni_path: str) -> str:
    """Find the executable of the plugin `kind` in the directories of CNI_PATH. Raises BadConfig."""
    if kind in (".", "..") or "/" in kind or "\0" in kind:
        raise BadConfig(f"ipam.type: {kind!r} is no file name; name a plugin, not a path")
    directories = [d for d in cni_path.split(":") if d.startswith("/")]
    for directory in directories:
        path = os.path.join(directory, kind)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    where = ":".join(directories) or "CNI_PATH, which names no absolute directory"
    raise BadConfig(f"ipam.type: no executable {kind!r} in {where}; install it or correct CNI_PATH")


class _Child:
    """A plugin that runs. `finish` or `kill` must follow: they wait for its end."""

    def __init__(self, call: Call, verb: str) -> None:
        self.kind, self.verb = call.type, verb
        path = find(self.kind, call.env.get("CNI_PATH", ""))
        env = {k: v for k, v in call.env.items() if k.startswith("CNI_")}
        env |= {"CNI_COMMAND": verb, "PATH": os.environ.get("PATH", _PATH)}
        fds = [os.memfd_create(f"ipam-{name}") for name in ("stdin", "stdout", "stderr")]
        stdin, self.stdout, self.stderr = fds
        try:
            os.pwrite(stdin, call.stdin, 0)
            # In a session of its own, so that one signal kills it with all that it has started.
            self.process = subprocess.Popen(
                [path],
                stdin=stdin,
                stdout=self.stdout,
                stderr=self.stderr,
                env=env,
                cwd="/",
                start_new_session=True,
            )
        except (OSError, ValueError) as e:
            os.close(self.stdout)
            os.close(self.stderr)
            raise IpamFailed(f"ipam.type: cannot execute {path}: {e}") from e
        finally:
            os.close(stdin)

    def finish(self, seconds: float) -> bytes:
        """Wait for the plugin; returns what it printed."""
        if self.process.returncode is not None:
            raise IpamFailed(f"ipam.type: {self.kind} {self.verb} was ended before it answered")
        try:
            if not self._ended(seconds):
                raise DeadlineExceeded(
                    f"ipam.type: {self.kind} {self.verb} took longer than {max(seconds, 0):.3g} s"
                )
            code = self.process.wait()
            out = self._output(self.stdout)
            if code:
                raise self._failure(code, out)
            return out
        finally:
            self.kill()

    def kill(self) -> None:
        """End the plugin if it still runs, and close what it wrote to."""
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for fd in (self.stdout, self.stderr):
            if fd >= 0:
                os.close(fd)
        self.stdout = self.stderr = -1

    def _ended(self, seconds: float) -> bool:
        pidfd = os.pidfd_open(self.process.pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            return bool(poll.poll(max(0.0, seconds) * 1000))
        finally:
            os.close(pidfd)

    def _output(self, fd: int) -> bytes:
        if os.fstat(fd).st_size > _OUTPUT_LIMIT:
            raise IpamFailed(f"ipam.type: {self.kind} {self.verb} printed more than 4 MiB")
        return os.pread(fd, _OUTPUT_LIMIT, 0)

    def _failure(self, code: int, out: bytes) -> IpamFailed:
        error = _json(out)
        number, msg = error.get("code"), error.get("msg")
        is_code = isinstance(number, int) and number is not True and 0 < number < 2**32
        if is_code and isinstance(msg, str):
            details = error.get("details")
            source = f"from the IPAM plugin {self.kind}, {self.verb}"
            return IpamFailed(msg, f"{details}; {source}" if details else source, code=number)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        size = os.fstat(self.stderr).st_size
        tail = os.pread(self.stderr, 2048, max(0, size - 2048)) or out[-2048:]
        return IpamFailed(
            f"ipam.type: {self.kind} {self.verb} {how} and gave no CNI error",
            tail.decode("utf-8", "replace").strip(),
        )


_pending: dict[tuple[str, AttachmentKey | None], _Child] = {}


def _json(data: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return decoded if isinstance(decoded, dict) else {}


def read_result(kind: str, out: bytes) -> Result:
    """Read what the plugin `kind` has printed at an ADD. Raises IpamFailed."""
    data = _json(out)
    version = data.get("cniVersion")
    if version not in result.VERSIONS:
        raise IpamFailed(
            f"ipam.type: {kind} ADD printed no result of CNI {', '.join(result.VERSIONS)}",
            out[:200].decode("utf-8", "replace"),
        )
    try:
        loaded = result.load(data, f"result of {kind}")
    except VmlinkError as e:
        raise IpamFailed(e.msg) from e
    ips = tuple(replace(ip, interface=None) for ip in loaded.ips)
    return Result(ips=ips, routes=loaded.routes, dns=loaded.dns)


def _verb_unknown(error: IpamFailed) -> bool:
    return error.code == 4 and "CNI_COMMAND" in error.msg


def _version_served(call: Call, seconds: float) -> None:
    answer = _json(_Child(call, "VERSION").finish(seconds))
    served = answer.get("supportedVersions")
    version = call.config.get("cniVersion")
    if not isinstance(served, list) or version not in served:
        raise NotReady(
            f"cniVersion: the IPAM plugin {call.type} does not serve {version}; "
            f"it serves {served}: install a newer one or lower cniVersion"
        )
