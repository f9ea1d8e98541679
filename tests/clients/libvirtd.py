"""libvirt's daemon on a Machine, and guests that it runs.

Sources: libvirt.org, "Domain XML format"; libvirtd(8), virsh(1), /usr/share/libvirt/qemu.conf.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.testbed.guest import Guest, accelerator
from bench.testbed.image import KERNEL_ARGS, image
from tests.clients.clientkit import Machine, await_

LIBVIRTD = Path("/usr/sbin/libvirtd")
# Guests run as root, without other namespaces, cgroups and security drivers than the test's own.
QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""
# libvirtd waits until a QEMU has gone, also as a zombie; that is an orphan, which needs a reaper.
_REAPER = """
import os, signal, sys
from cni.kernel.netns import libc
libc.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
while os.wait()[0] != pid:
    pass
"""
_BOOT_SECONDS = 60


class Libvirtd:
    """The daemon, with its files in the Machine's private directories."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        for place in ("/etc/libvirt", "/var/log", "/var/cache"):
            machine.run("mount", "-t", "tmpfs", "tmpfs", place)
        self._add_user()
        machine.path("/etc/libvirt/qemu.conf").write_text(QEMU_CONF)
        settings = machine.path("/etc/libvirt/libvirtd.conf")
        settings.write_text('auth_unix_rw = "none"\nunix_sock_group = "root"\n')
        self._log = machine.node.lab.dir / "libvirtd.log"
        reaper = (sys.executable, "-c", _REAPER)
        command = (*reaper, str(LIBVIRTD), "--config", "/etc/libvirt/libvirtd.conf")
        self._process = machine.popen(*command, log=self._log)
        try:
            await_(self._answers, "libvirtd answers")
        except BaseException:
            self.close()
            raise

    def _add_user(self) -> None:
        """Add the user that libvirtd looks up before it reads qemu.conf; a package would do so."""
        for file in ("passwd", "group"):
            lines = Path(f"/etc/{file}").read_text()
            if "libvirt-qemu:" not in lines:
                lines += "libvirt-qemu:x:64055:"
                lines += "64055::/nonexistent:/usr/sbin/nologin\n" if file == "passwd" else "\n"
            copy = self._machine.node.lab.dir / file
            copy.write_text(lines)
            self._machine.run("mount", "--bind", str(copy), f"/etc/{file}")

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        return "QEMU" in self.virsh("version", check=False)

    def virsh(self, *arguments: str, check: bool = True) -> str:
        """Run virsh; returns what it prints."""
        return self._machine.run("virsh", "--connect", "qemu:///system", *arguments, check=check)

    def change(self, verb: str, domain: str, nic: str) -> None:
        """Attach or detach the NIC of an XML document, in a running domain."""
        path = self._machine.node.lab.dir / "nic.xml"
        path.write_text(nic)
        self.virsh(f"{verb}-device", domain, str(path), "--live")

    @contextmanager
    def domain(self, name: str, *nics: str) -> Iterator[Guest]:
        """Define and start a domain with these NICs; it is destroyed and forgotten at the end."""
        scratch = Path(tempfile.mkdtemp(prefix="vmlink-guest-"))
        definition = self._machine.node.lab.dir / f"{name}.xml"
        definition.write_text(_domain(name, scratch, nics))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(scratch / "control"))
            listener.listen(1)
            self.virsh("define", str(definition))
            try:
                self.virsh("start", name)
                pid = int(self._machine.path(f"/run/libvirt/qemu/{name}.pid").read_text())
                with Guest(_Adopted(pid), scratch, scratch / "console") as guest:
                    guest.connect(listener, time.monotonic() + _BOOT_SECONDS)
                    yield guest
            finally:
                self.virsh("destroy", name, check=False)
                self.virsh("undefine", name)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)


class _Adopted(subprocess.Popen[bytes]):
    """QEMU as libvirtd's child, which libvirtd ends."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode = 0

    def poll(self) -> int:
        return 0


def _domain(name: str, scratch: Path, nics: tuple[str, ...]) -> str:
    kernel = image()
    accel = accelerator()
    kind = {"tcg": "qemu", "kvm": "kvm"}[accel]
    # QEMU 7.2 ends with SIGSEGV when TCG, vhost-user and MSI-X come together.
    vectors = "<qemu:arg value='-global'/><qemu:arg value='virtio-net-pci.vectors=0'/>"
    return f"""\
<domain type='{kind}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel.kernel}</kernel><initrd>{kernel.initramfs}</initrd>
    <cmdline>{KERNEL_ARGS}</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {"".join(nics)}
    <serial type='file'><source path='{scratch}/console'/><target port='0'/></serial>
    <serial type='unix'>
      <source mode='connect' path='{scratch}/control'/><target port='1'/>
    </serial>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>{vectors if accel == "tcg" else ""}</qemu:commandline>
</domain>
"""
