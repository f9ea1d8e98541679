"""Daemons of Open vSwitch and OVN, with all their files in a directory of their own."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Self

from bench.testbed.slowness import SLOWNESS
from cni.kernel.netns import Namespace

SECONDS = 20 * SLOWNESS  # limit for a daemon to start, and for a command


class SwitchError(Exception):
    """A daemon did not start or a command failed; the message has its output."""


class Daemons:
    """A set of daemons in `namespace`, which die with the THREAD that starts them.

    `dir` has their databases, sockets and logs.
    """

    def __init__(self, namespace: Namespace, prefix: str) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix=prefix))
        self._namespace = namespace
        # DPDK uses RUNTIME_DIRECTORY, as systemd sets it, instead of /var/run.
        directories = ("RUNDIR", "LOGDIR", "DBDIR", "SYSCONFDIR")
        names = [f"{of}_{directory}" for of in ("OVS", "OVN") for directory in directories]
        self._env = {**os.environ, **dict.fromkeys([*names, "RUNTIME_DIRECTORY"], str(self.dir))}
        self._cleanup = ExitStack()
        self._cleanup.callback(shutil.rmtree, self.dir)

    def __enter__(self) -> Self:
        with ExitStack() as on_error:
            on_error.callback(self.close)
            self.start()
            on_error.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the daemons and wait until they serve. Raises SwitchError, OSError."""
        raise NotImplementedError

    def close(self) -> None:
        """End the daemons and remove their files; may be called again."""
        self._cleanup.close()

    def spawn(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a daemon, which logs to `name`.log."""
        argv = ["setpriv", "--pdeathsig", "KILL", *command, "--verbose=syslog:off"]
        with (self.dir / f"{name}.log").open("ab") as log, self._namespace.entered():
            # In a session of its own, Ctrl-C does not reach it: `close` ends daemons in order.
            return subprocess.Popen(
                argv, stdout=log, stderr=log, env=self._env, cwd=self.dir, start_new_session=True
            )

    def serve(self, name: str, database: str, address: str) -> subprocess.Popen[bytes]:
        """Start ovsdb-server on an existing database and wait until it listens at `address`.

        Raises SwitchError.
        """
        ready = self.dir / f"{name}.ready"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(ready))
            listener.listen()
            # It connects to `ready` when it listens at `address`.
            options = (f"--remote=p{address}", f"--remote=unix:{ready}", self.control(name))
            server = self.spawn(name, "ovsdb-server", *options, f"{self.dir}/{database}")
            try:
                self._await(listener, server, name)
            except BaseException:
                end(server)
                raise
        ready.unlink()
        self.appctl(name, "ovsdb-server/remove-remote", f"unix:{ready}")
        return server

    def await_client(self, argv: Sequence[str], daemon: subprocess.Popen[bytes], name: str) -> None:
        """Run a command that waits for the daemon. Raises SwitchError when either of them fails."""
        with subprocess.Popen(argv, env=self._env, stderr=subprocess.PIPE, text=True) as client:
            assert client.stderr
            try:
                self._await(client.stderr, daemon, name)
                if client.wait():
                    raise SwitchError(
                        f"{shlex.join(argv)}: {client.stderr.read()}{self.tail(name)}"
                    )
            finally:
                client.kill()

    def _await(
        self, event: socket.socket | IO[str], daemon: subprocess.Popen[bytes], name: str
    ) -> None:
        """Wait until `event` can be read, while the daemon lives."""
        exited = os.pidfd_open(daemon.pid)
        try:
            poll = select.poll()
            poll.register(event, select.POLLIN)
            poll.register(exited, select.POLLIN)
            readable = [fd for fd, _ in poll.poll(SECONDS * 1000)]
        finally:
            os.close(exited)
        if not readable or exited in readable:
            problem = "ended" if readable else f"is not ready after {SECONDS} s"
            raise SwitchError(f"{name} {problem}:\n{self.tail(name)}")

    def run(self, *command: str) -> str:
        """Run a command with the daemons' environment; returns stdout. Raises SwitchError."""
        done = subprocess.run(
            command, env=self._env, capture_output=True, text=True, timeout=2 * SECONDS, check=False
        )
        if done.returncode:
            raise SwitchError(f"{shlex.join(command)}: {done.stderr}")
        return done.stdout

    def control(self, name: str) -> str:
        """The option of a daemon that makes it listen to `appctl`."""
        return f"--unixctl={self.dir}/{name}.ctl"

    def appctl(self, name: str, *command: str) -> str:
        """Send a command to a daemon with ovs-appctl; returns its answer. Raises SwitchError."""
        return self.run("ovs-appctl", "-t", f"{self.dir}/{name}.ctl", *command)

    def tail(self, name: str, lines: int = 20) -> str:
        """The last lines of a daemon's log."""
        log = self.dir / f"{name}.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def end(daemon: subprocess.Popen[bytes] | None, number: int = signal.SIGKILL) -> None:
    """Send a daemon the signal and wait for its end; nothing happens when there is none."""
    if daemon:
        daemon.send_signal(number)
        daemon.wait(SECONDS)
