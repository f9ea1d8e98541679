"""A micro-VM for demo, tests and benchmarks: boot it, run commands in it, configure its NICs.

    with Guest.boot(prefix=["vmlinkctl", "exec", ID, "--"]) as guest:
        guest.configure("eth0", ["10.0.0.2/24", "fd00::2/64"], ["10.0.0.1"])
        print(guest.run("ip addr"))

Debian packages: qemu-system-x86, busybox-static, iperf3.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
import os
import select
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self

from bench.testbed import qemu
from bench.testbed.image import CACHE, image, locked, replace
from bench.testbed.slowness import SLOWNESS

BOOT_SECONDS = 60.0 * SLOWNESS
PROBE_SECONDS = 8.0 * SLOWNESS
ANSWER_GRACE = 10.0 * SLOWNESS  # seconds beyond a command's limit until its answer must be there
DAD_SECONDS = 15.0 * SLOWNESS
TENTATIVE, DAD_FAILED = 0x40, 0x08  # IFA_F_* of linux/if_addr.h


class GuestError(Exception):
    """A guest failed, or a command that runs in it or reaches it.

    `status` is the command's exit status, None when it has none; `output` is what it printed.
    """

    def __init__(self, message: str, status: int | None = None, output: str = "") -> None:
        super().__init__(f"{message}\n{output}".rstrip())
        self.status = status
        self.output = output


class Nic(NamedTuple):
    """A network interface of a guest, as its sysfs shows it."""

    name: str
    mac: str
    mtu: int
    operstate: str


def accelerator() -> str:
    """`kvm` or `tcg`, whichever runs a guest here; tried once per boot of the host."""
    return _acceleration()[0]


def accelerator_reason() -> str:
    """Why `accelerator()` is what it is, in one line."""
    return _acceleration()[1]


@cache
def _acceleration() -> tuple[str, str]:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg", "/dev/kvm cannot be opened here"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    cached = CACHE / "accelerator"
    image()
    with locked(CACHE / "accelerator.lock"):
        if cached.exists():
            cached_boot_id, name, reason = cached.read_text().split(" ", 2)
            if cached_boot_id == boot_id:
                return name, reason.strip()
        name, reason = _probe()
        replace(cached, f"{boot_id} {name} {reason}\n")
    return name, reason


def _probe() -> tuple[str, str]:
    try:
        with Guest.boot(accel="kvm", timeout=PROBE_SECONDS) as guest:
            return "kvm", f"a probe guest was up after {guest.boot_seconds:.1f} s"
    except GuestError as error:
        return "tcg", "/dev/kvm opens, but a probe guest failed: " + str(error).splitlines()[0]


class Guest:
    """A running micro-VM, which `Guest.boot` makes; as a context manager it ends at the end.

    `boot_seconds` is the time from exec to the first answer, `pid` the process id of QEMU, `log`
    the file with the console's output.
    """

    def __init__(self, process: subprocess.Popen[bytes], scratch: Path, log: Path) -> None:
        self.log = log
        self.pid = process.pid
        self.boot_seconds = math.nan
        self._process = process
        self._exit = os.pidfd_open(process.pid)
        self._scratch = scratch
        self._channel: socket.socket | None = None
        self._buffer = b""
        self._ids = itertools.count(1)

    @classmethod
    def boot(
        cls,
        *,
        prefix: Sequence[str] = (),
        extra: Sequence[str] = (),
        memory_mb: int = 256,
        cpus: int = 1,
        netns: str | None = None,
        shared_memory: bool = False,
        log: Path | None = None,
        accel: str | None = None,
        timeout: float = BOOT_SECONDS,
    ) -> Self:
        """Start QEMU and wait, at most `timeout` seconds, until the guest takes commands.

        `prefix` goes in front of QEMU's argv and must exec it; `extra` is appended. QEMU runs in
        `netns` (a name or a path), and dies with the THREAD that boots it. A `log` of the caller
        is appended to and kept. vhost-user needs `shared_memory`. Raises GuestError, ImageError.
        """
        accel, kernel = accel or accelerator(), image()
        scratch = Path(tempfile.mkdtemp(prefix="vmlink-guest-"))
        log = log or scratch / "console"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(scratch / "control"))
            listener.listen(1)
            argv = enter_namespace(netns) if netns else []
            argv += [*prefix, *qemu.arguments(kernel, scratch, log, accel)]
            argv += ["-m", str(memory_mb), "-smp", str(cpus), *extra]
            argv += qemu.shared_memory(memory_mb, accel) if shared_memory else []
            started = time.monotonic()
            guest = cls(_start(argv, log), scratch, log)
            try:
                guest.connect(listener, started + timeout)
            except BaseException:
                guest.close()
                raise
        guest.boot_seconds = time.monotonic() - started
        return guest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End QEMU and remove its files; may be called again."""
        if self._exit < 0:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                os.killpg(self.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(3)
        os.close(self._exit)
        self._exit = -1
        if self._channel:
            self._channel.close()
        for path in (self._scratch / "control", self._scratch / "console"):
            path.unlink(missing_ok=True)
        self._scratch.rmdir()

    def run(self, command: str, timeout: float = 10.0) -> str:
        """Run a shell command in the guest; returns its stdout and stderr together.

        Raises GuestError when its status is not 0, after `timeout` seconds (times
        SLOWNESS, rounded up), and when the guest does not answer.
        """
        number = next(self._ids)
        limit = math.ceil(timeout * SLOWNESS)
        line = command.replace("\\", "\\\\").replace("\n", "\\n")
        deadline = time.monotonic() + limit + ANSWER_GRACE
        self._socket().sendall(f"{number} {limit} {line}\n".encode())
        started = time.monotonic()
        while True:
            answer, status, length = map(int, self._until(b"\n", deadline).split())
            output = self._take(length, deadline).decode(errors="replace")
            if answer == number:  # else it is the late answer to a command that timed out
                break
        if status == 128 + signal.SIGKILL and time.monotonic() - started >= limit:
            raise GuestError(f"in the guest: {command}: more than {limit} s", status, output)
        if status:
            raise GuestError(f"in the guest: {command}: status {status}", status, output)
        return output

    def spawn(self, command: str) -> int:
        """Start a shell command in the guest's background; returns its process group."""
        log = f"/tmp/spawn.{next(self._ids)}"
        quoted = shlex.quote(command)
        return int(self.run(f"setsid sh -c {quoted} </dev/null >{log} 2>&1 & echo $!"))

    def kill(self, group: int) -> None:
        """End what `spawn` started; nothing happens when it has ended already."""
        self.run(f"kill -9 -- -{group} 2>/dev/null; true")

    def nics(self) -> list[Nic]:
        """All network interfaces but the loopback, sorted by name. Raises GuestError."""
        listing = self.run(
            "cd /sys/class/net; for n in *; do [ $n = lo ] && continue; read mac <$n/address; "
            "read mtu <$n/mtu; read state <$n/operstate; echo $n $mac $mtu $state; done"
        )
        rows = [line.split() for line in listing.splitlines()]
        return sorted(Nic(name, mac, int(mtu), state) for name, mac, mtu, state in rows)

    def configure(self, nic: str, addresses: Sequence[str], gateways: Sequence[str] = ()) -> None:
        """Set a NIC up with addresses (CIDR) and default routes, as a pod's would be.

        Returns when duplicate address detection is done (1 to 2 s with IPv6). Raises GuestError,
        also for a duplicate address, and ValueError for text that is no address.
        """
        cidrs = [ipaddress.ip_interface(address) for address in addresses]
        lines = ["set -e", f"ip link set dev {nic} up"]
        lines += [f"ip addr add {cidr.with_prefixlen} dev {nic}" for cidr in cidrs]
        for gateway in map(ipaddress.ip_address, gateways):
            ip = f"ip -{gateway.version} route add"
            linklocal = gateway.version == 6 and gateway.is_link_local
            if not linklocal and not any(gateway in cidr.network for cidr in cidrs):
                lines.append(f"{ip} {gateway} dev {nic}")
            lines.append(f"{ip} default via {gateway} dev {nic}")
        self.run("\n".join(lines))
        if any(cidr.version == 6 for cidr in cidrs):
            self._await_dad(nic)

    def _await_dad(self, nic: str) -> None:
        deadline = time.monotonic() + DAD_SECONDS
        while time.monotonic() < deadline:
            rows = [row.split() for row in self.run("cat /proc/net/if_inet6").splitlines()]
            flags = {row[0]: int(row[4], 16) for row in rows if row[5] == nic}
            for address, flag in flags.items():
                if flag & DAD_FAILED:
                    raise GuestError(f"{nic}: {address} is in use elsewhere (DAD)")
            if not any(flag & TENTATIVE for flag in flags.values()):
                return
            time.sleep(0.05)
        raise GuestError(f"{nic}: addresses still tentative after {DAD_SECONDS:.0f} s")

    def connect(self, listener: socket.socket, deadline: float) -> None:
        """Wait until the guest takes commands, which reach it from `listener` by its second port.

        `deadline` is in seconds of the monotonic clock. `boot` does this; what else has started
        the guest, such as libvirt, is waited for here. Raises GuestError.
        """
        self._wait(listener, deadline, "did not start")
        self._channel, _ = listener.accept()
        # The firmware and the driver's probing may have written to the channel before.
        self._until(b"0 0 5\n", deadline)
        self._take(len(b"ready"), deadline)

    def _socket(self) -> socket.socket:
        if self._channel is None or self._exit < 0:
            raise GuestError("the guest is closed: boot another one")
        return self._channel

    def _until(self, mark: bytes, deadline: float) -> bytes:
        while mark not in self._buffer:
            self._receive(deadline)
        head, _, self._buffer = self._buffer.partition(mark)
        return head

    def _take(self, length: int, deadline: float) -> bytes:
        while len(self._buffer) < length:
            self._receive(deadline)
        data, self._buffer = self._buffer[:length], self._buffer[length:]
        return data

    def _receive(self, deadline: float) -> None:
        channel = self._socket()
        self._wait(channel, deadline, "does not answer")
        data = channel.recv(1 << 16)
        if not data:
            raise GuestError("QEMU hung up", output=self._tail())
        self._buffer += data

    def _wait(self, ready: socket.socket, deadline: float, complaint: str) -> None:
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        poll.register(self._exit, select.POLLIN)
        readable = [fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]
        if ready.fileno() in readable:
            return
        if readable:
            status = self._process.wait()
            raise GuestError(f"QEMU ended, status {status}", status, self._tail())
        raise GuestError(f"the guest {complaint} in time", output=self._tail())

    def _tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def enter_namespace(netns: str) -> list[str]:
    """The start of an argv that enters a network namespace, a name or a path."""
    return ["nsenter", f"--net={netns if '/' in netns else '/run/netns/' + netns}", "--"]


def _start(argv: list[str], log: Path) -> subprocess.Popen[bytes]:
    argv = ["setpriv", "--pdeathsig", "KILL", *argv]
    null = subprocess.DEVNULL
    with log.open("ab") as out:
        return subprocess.Popen(argv, stdin=null, stdout=out, stderr=out, start_new_session=True)
