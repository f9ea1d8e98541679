"""A micro-VM for demo, tests and benchmarks: boot it, talk to it, send traffic to it.

    with Guest.boot(prefix=["vmlinkctl", "exec", ID, "--"]) as guest:
        guest.configure("eth0", ["10.0.0.2/24", "fd00::2/64"], ["10.0.0.1"])
        print(guest.run("ip addr"), iperf_tcp(guest, "10.0.0.2", "/run/netns/peer"))

Debian packages: qemu-system-x86, busybox-static, iperf3, iputils-ping.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import math
import os
import re
import select
import shlex
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

from bench.testbed.image import CACHE, Image, image, locked, replace

BOOT_SECONDS = 60.0
PROBE_SECONDS = 8.0
ANSWER_GRACE = 10.0
DAD_SECONDS = 15.0
TENTATIVE, DAD_FAILED = 0x40, 0x08

_ports = itertools.count(5201)


class GuestError(Exception):
    """A guest, or a command in or towards it, failed.

    `status` is the command's exit status, None where there was none; `output` what it printed.
    """

    def __init__(self, message: str, status: int | None = None, output: str = "") -> None:
        super().__init__(f"{message}\n{output}".rstrip())
        self.status = status
        self.output = output


class Nic(NamedTuple):
    name: str
    mac: str
    mtu: int
    operstate: str


def accelerator() -> str:
    """`kvm` or `tcg`, whichever really runs a guest here; found out once per boot of the host."""
    return _acceleration()[0]


def accelerator_reason() -> str:
    """One line for people: why `accelerator()` says what it says."""
    return _acceleration()[1]


@cache
def _acceleration() -> tuple[str, str]:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg", "/dev/kvm cannot be opened here"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    kept = CACHE / "accelerator"
    image()
    with locked(CACHE / "accelerator.lock"):
        if kept.exists():
            known, name, reason = kept.read_text().split(" ", 2)
            if known == boot_id:
                return name, reason.strip()
        name, reason = _probe()
        replace(kept, f"{boot_id} {name} {reason}\n")
    return name, reason


def _probe() -> tuple[str, str]:
    try:
        with Guest.boot(accel="kvm", timeout=PROBE_SECONDS) as guest:
            return "kvm", f"a probe guest was up after {guest.boot_seconds:.1f} s"
    except GuestError as error:
        return "tcg", "/dev/kvm opens, but a probe guest failed: " + str(error).splitlines()[0]


class Guest:
    """A running micro-VM; a context manager that ends it. Made by `Guest.boot`.

    `boot_seconds` is the time from exec to the first answer, `pid` QEMU's, `log` the console.
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

        `prefix` goes in front of QEMU's argv and must exec it; `extra` is appended. `netns` (a
        name or a path) is entered first. The guest dies with the THREAD that boots it. A log of
        your own is appended to and outlives the guest. vhost-user needs `shared_memory`. Raises
        GuestError, ImageError.
        """
        accel, kernel = accel or accelerator(), image()
        scratch = Path(tempfile.mkdtemp(prefix="vmlink-guest-"))
        log = log or scratch / "console"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(scratch / "control"))
            listener.listen(1)
            argv = [*_enter(netns), *prefix, *_qemu(kernel, scratch, log, accel)]
            argv += ["-m", str(memory_mb), "-smp", str(cpus), *extra]
            argv += _shared(memory_mb, accel) if shared_memory else []
            started = time.monotonic()
            guest = cls(_start(argv, log), scratch, log)
            try:
                guest._connect(listener, started + timeout)
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
        """End QEMU; nothing is left of it afterwards. May be called again."""
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
        """Run a shell command in the guest; its stdout and stderr together.

        Raises GuestError when its status is not 0, after `timeout` seconds (rounded up), and
        when the guest does not answer.
        """
        number = next(self._ids)
        limit = math.ceil(timeout)
        line = command.replace("\\", "\\\\").replace("\n", "\\n")
        deadline = time.monotonic() + limit + ANSWER_GRACE
        self._socket().sendall(f"{number} {limit} {line}\n".encode())
        started = time.monotonic()
        while True:
            answered, status, length = map(int, self._until(b"\n", deadline).split())
            output = self._take(length, deadline).decode(errors="replace")
            if answered == number:
                break
        if status == 128 + signal.SIGKILL and time.monotonic() - started >= limit:
            raise GuestError(f"in the guest: {command}: more than {limit} s", status, output)
        if status:
            raise GuestError(f"in the guest: {command}: status {status}", status, output)
        return output

    def spawn(self, command: str) -> int:
        """Start a shell command in the guest's background; the id of its process group."""
        log = f"/tmp/spawn.{next(self._ids)}"
        quoted = shlex.quote(command)
        return int(self.run(f"setsid sh -c {quoted} </dev/null >{log} 2>&1 & echo $!"))

    def kill(self, group: int) -> None:
        """End what `spawn` started; fine when it has ended already."""
        self.run(f"kill -9 -- -{group} 2>/dev/null; true")

    def nics(self) -> list[Nic]:
        """Every network interface but loopback, by name."""
        listing = self.run(
            "cd /sys/class/net; for n in *; do [ $n = lo ] && continue; read mac <$n/address; "
            "read mtu <$n/mtu; read state <$n/operstate; echo $n $mac $mtu $state; done"
        )
        rows = [line.split() for line in listing.splitlines()]
        return sorted(Nic(name, mac, int(mtu), state) for name, mac, mtu, state in rows)

    def configure(self, nic: str, addresses: Sequence[str], gateways: Sequence[str] = ()) -> None:
        """Set a NIC up with addresses (CIDR) and default routes, as a pod's would be.

        Returns when duplicate address detection is through (1 to 2 s with IPv6). Raises
        GuestError, also for a duplicate, and ValueError for what is no address.
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

    def _connect(self, listener: socket.socket, deadline: float) -> None:
        self._wait(listener, deadline, "did not start")
        self._channel, _ = listener.accept()
        # What the firmware or the driver's probing may have written comes before.
        self._until(b"0 0 5\n", deadline)
        self._take(len(b"ready"), deadline)

    def _socket(self) -> socket.socket:
        if self._channel is None or self._exit < 0:
            raise GuestError("the guest is closed")
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
        found = [fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]
        if ready.fileno() in found:
            return
        if found:
            status = self._process.wait()
            raise GuestError(f"QEMU ended, status {status}", status, self._tail())
        raise GuestError(f"the guest {complaint} in time", output=self._tail())

    def _tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _enter(netns: str | None) -> list[str]:
    if netns is None:
        return []
    return ["nsenter", f"--net={netns if '/' in netns else '/run/netns/' + netns}", "--"]


def _start(argv: list[str], log: Path) -> subprocess.Popen[bytes]:
    argv = ["setpriv", "--pdeathsig", "KILL", *argv]
    null = subprocess.DEVNULL
    with log.open("ab") as out:
        return subprocess.Popen(argv, stdin=null, stdout=out, stderr=out, start_new_session=True)


def _qemu(kernel: Image, scratch: Path, log: Path, accel: str) -> list[str]:
    # Emulating what `max` has (SMAP among it) halves the throughput. And `pc` rather than q35:
    # there NICs can be plugged in later without a port for each.
    cpu = "host" if accel == "kvm" else "qemu64,+rdrand"
    machine = f"-machine pc -accel {accel} -cpu {cpu} -bios qboot.rom"
    bare = "-nodefaults -no-user-config -no-reboot -display none -global virtio-net-pci.romfile="
    return [
        *("qemu-system-x86_64", *machine.split(), *bare.split(), *kernel.argv()),
        *("-chardev", f"file,id=console,path={log},append=on", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=control,path={scratch}/control", "-serial", "chardev:control"),
    ]


def _shared(memory_mb: int, accel: str) -> list[str]:
    memory = f"memory-backend-memfd,id=mem,size={memory_mb}M,share=on"
    argv = ["-object", memory, "-machine", "memory-backend=mem"]
    # QEMU 7.2 ends with SIGSEGV when TCG, vhost-user and MSI-X come together.
    return [*argv, "-global", "virtio-net-pci.vectors=0"] if accel == "tcg" else argv


def _client(argv: list[str], where: str | Guest, timeout: float) -> str:
    if isinstance(where, Guest):
        return where.run(shlex.join(argv), timeout)
    try:
        done = subprocess.run(
            [*_enter(where), *argv], capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise GuestError(f"{shlex.join(argv)}: more than {timeout:.0f} s") from error
    if done.returncode:
        output = done.stdout + done.stderr
        raise GuestError(f"{shlex.join(argv)}: failed", done.returncode, output)
    return done.stdout


def _iperf(
    guest: Guest, guest_ip: str, where: str | Guest, seconds: float, flags: list[str]
) -> Any:
    port = next(_ports)
    whole = max(1, math.ceil(seconds))
    server = guest.spawn(f"iperf3 -s -1 -p {port}")
    try:
        listening = f":{port:04X} [0-9A-F:]* 0A "
        guest.run(f"until grep -q '{listening}' /proc/net/tcp /proc/net/tcp6; do usleep 9000; done")
        argv = ["iperf3", "-J", "-c", guest_ip, "-p", str(port), "-t", str(whole), *flags]
        return json.loads(_client(argv, where, whole + 20))["end"]
    finally:
        guest.kill(server)


def iperf_tcp(
    guest: Guest,
    guest_ip: str,
    where: str | Guest,
    seconds: float = 2.0,
    reverse: bool = False,
    parallel: int = 1,
) -> float:
    """TCP into the guest (`reverse`: out of it) from a namespace or another guest: Gbit/s as
    received.

    iperf3 counts whole seconds, so `seconds` is rounded up. Raises GuestError.
    """
    flags = ["-P", str(parallel), *(["-R"] if reverse else [])]
    end = _iperf(guest, guest_ip, where, seconds, flags)
    return float(end["sum_received"]["bits_per_second"]) / 1e9


def iperf_udp(
    guest: Guest,
    guest_ip: str,
    netns: str,
    seconds: float = 2.0,
    reverse: bool = False,
    rate: str = "1G",
    length: int = 1400,
) -> tuple[float, float]:
    """UDP offered at `rate` (iperf3's notation, 0 is unlimited) in datagrams of `length` bytes.

    Gbit/s as received, and percent lost. `seconds` is rounded up. Raises GuestError.
    """
    flags = ["-u", "-b", rate, "-l", str(length), *(["-R"] if reverse else [])]
    end = _iperf(guest, guest_ip, netns, seconds, flags)["sum"]
    received = (end["packets"] - end["lost_packets"]) * length * 8 / end["seconds"]
    return received / 1e9, float(end["lost_percent"])


def ping(
    netns: str, ip: str, count: int = 20, size: int | None = None, dont_fragment: bool = False
) -> float:
    """Median round trip in ms from `netns`, with `size` bytes after the ICMP header.

    Lost answers are left out. Raises GuestError when all are, or when the packet is too long.
    """
    argv = ["ping", "-n", "-c", str(count), "-i", "0.01", "-W", "1"]
    argv += ["-s", str(size)] if size is not None else []
    argv += ["-M", "do"] if dont_fragment else []
    output = _client([*argv, ip], netns, count * 1.1 + 10)
    return statistics.median(float(ms) for ms in re.findall(r"time=([\d.]+) ms", output))
