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

from cni.kernel.netns import Namespace

SECONDS = 20  # for a daemon to come up, and for a command


class SwitchError(Exception):
    """A daemon did not come up, or a command failed; says what it said."""


class Daemons:
    """Those of one kind in `namespace`. They die with the THREAD that starts them."""

    def __init__(self, namespace: Namespace, prefix: str) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix=prefix))
        self._namespace = namespace
        # DPDK takes RUNTIME_DIRECTORY, as systemd sets it, instead of /var/run.
        places = ("RUNDIR", "LOGDIR", "DBDIR", "SYSCONFDIR")
        names = [f"{of}_{place}" for of in ("OVS", "OVN") for place in places]
        self._env = {**os.environ, **dict.fromkeys([*names, "RUNTIME_DIRECTORY"], str(self.dir))}
        self._taken = ExitStack()
        self._taken.callback(shutil.rmtree, self.dir)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Raises SwitchError, OSError."""
        raise NotImplementedError

    def close(self) -> None:
        """End them; nothing is left afterwards. May be called again."""
        self._taken.close()

    def spawn(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a daemon, which logs to `name`.log."""
        argv = ["setpriv", "--pdeathsig", "KILL", *command, "--verbose=syslog:off"]
        with (self.dir / f"{name}.log").open("ab") as log, self._namespace.entered():
            # A session of its own: Ctrl-C is for us, and we end them in their order.
            return subprocess.Popen(
                argv, stdout=log, stderr=log, env=self._env, cwd=self.dir, start_new_session=True
            )

    def serve(self, name: str, database: str, address: str) -> subprocess.Popen[bytes]:
        """Start ovsdb-server on a database that is there, and wait until it serves."""
        ready = self.dir / f"{name}.ready"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(ready))
            listener.listen()
            # It connects to one when it listens on the other.
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
        """Until a command that waits for something is done, while the daemon lives."""
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
        """Until `event` can be read, while the daemon lives."""
        ended = os.pidfd_open(daemon.pid)
        try:
            poll = select.poll()
            poll.register(event, select.POLLIN)
            poll.register(ended, select.POLLIN)
            found = [fd for fd, _ in poll.poll(SECONDS * 1000)]
        finally:
            os.close(ended)
        if not found or ended in found:
            how = "ended" if found else f"is not ready after {SECONDS} s"
            raise SwitchError(f"{name} {how}:\n{self.tail(name)}")

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self._env, capture_output=True, text=True, timeout=2 * SECONDS, check=False
        )
        if done.returncode:
            raise SwitchError(f"{shlex.join(command)}: {done.stderr}")
        return done.stdout

    def control(self, name: str) -> str:
        """The option that makes a daemon listen to `appctl`."""
        return f"--unixctl={self.dir}/{name}.ctl"

    def appctl(self, name: str, *command: str) -> str:
        return self.run("ovs-appctl", "-t", f"{self.dir}/{name}.ctl", *command)

    def tail(self, name: str, lines: int = 20) -> str:
        """The end of a daemon's log."""
        log = self.dir / f"{name}.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def end(daemon: subprocess.Popen[bytes] | None, number: int = signal.SIGKILL) -> None:
    """End a daemon by its own id; fine when there is none."""
    if daemon:
        daemon.send_signal(number)
        daemon.wait(SECONDS)
