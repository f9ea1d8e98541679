"""Debian's kernels, of this release and of the next ones, unpacked into `.cache/kernels`.

Nothing is installed, and apt's own lists stay as they are: a private apt (apt.conf(5), directory
`private`) asks the mirror from which this machine has its own release.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.testbed.image import CACHE, locked

KERNELS = CACHE.parent / "kernels"
NEWEST = "newest"
NEXT_RELEASES = ("stable", "testing", "unstable")
LISTS_SECONDS = 24 * 3600  # how long the lists are taken for current

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_IMAGE = re.compile(r"linux-image-(\d[\w.+~]*(?:-\d+)?-amd64)")


class KernelError(Exception):
    """A kernel cannot be had; the message says why and what to do."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel; `home` has `vmlinuz` and `lib/modules`, as `modprobe -d` takes it."""

    home: Path

    @property
    def release(self) -> str:
        """What `uname -r` prints under it."""
        (directory,) = (self.home / "lib/modules").iterdir()
        return directory.name

    def modules(self, *names: str) -> list[Path]:
        """The files of modules and of what they need, in loading order. Raises KernelError."""
        found: dict[Path, None] = {}
        for name in names:
            modprobe = ("modprobe", "-d", str(self.home), "-S", self.release, "--show-depends")
            lines = _run(*modprobe, name).splitlines()
            found |= {Path(line.split()[1]): None for line in lines if line.startswith("insmod")}
        return list(found)


def find(wanted: str) -> Kernel:
    """The newest kernel whose version begins with `wanted`, such as 6.1, or is the newest of all.

    A version that is in the cache is taken from there. Raises KernelError.
    """
    KERNELS.mkdir(parents=True, exist_ok=True)
    with locked(KERNELS / "lock"):
        release = "" if wanted == NEWEST else _newest([p.name for p in _unpacked()], wanted)
        if not release:
            complaint = _update()
            release = _newest(_offered(), wanted)
            if not release:
                raise KernelError(f"Debian has no kernel {wanted}: see {_lists()}{complaint}")
        home = KERNELS / release
        if not home.exists():
            _fetch(release, home)
    return Kernel(home)


def _unpacked() -> list[Path]:
    return [path.parent for path in KERNELS.glob("*/vmlinuz")]


def _newest(releases: list[str], wanted: str) -> str:
    """The newest of these that has all the numbers of `wanted`, or ""."""
    numbers = [] if wanted == NEWEST else _numbers(wanted)
    fitting = [r for r in releases if _numbers(r)[: len(numbers)] == numbers]
    return max(fitting, key=_numbers, default="")


def _numbers(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release.removesuffix("-amd64"))]


def _lists() -> Path:
    return KERNELS / "apt" / "lists"


def _private() -> list[str]:
    """Options that keep apt's sources, lists and cache apart from the machine's."""
    apt = KERNELS / "apt"
    settings = {
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": _lists(),
        "Dir::Cache": apt / "cache",
        "APT::Sandbox::User": "root",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def _update() -> str:
    """Fetch the lists unless they are fresh; returns apt's complaint about those it lacks."""
    stamp = KERNELS / "apt" / "updated"
    if stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_SECONDS:
        return ""
    (_lists() / "partial").mkdir(parents=True, exist_ok=True)
    (KERNELS / "apt" / "sources.list").write_text(_sources())
    update = ("apt-get", *_private(), "update")
    done = subprocess.run(update, capture_output=True, text=True, check=False)
    if done.returncode:  # an old mirror may lack a release and have the others
        return f"\n{done.stderr}"
    stamp.touch()
    return ""


def _sources() -> str:
    """Sources for this release, as the machine has them, and for the next ones."""
    shape = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    rows = _run("apt-get", "indextargets", "--format", shape, "Created-By: Packages").splitlines()
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    own = [row for row in rows if codename and row.split()[1].startswith(codename)]
    mirrors = [row.split()[0] for row in own if row.split()[1] == codename]
    if not mirrors:
        raise KernelError(f"apt has no source for {codename or 'a release of Debian'}: add one")
    rows = own + [f"{mirrors[0]} {release} main" for release in NEXT_RELEASES]
    return "".join(f"deb [signed-by={_KEYRING}] {row}\n" for row in rows)


def _offered() -> list[str]:
    names = _run("apt-cache", *_private(), "pkgnames", "linux-image-").split()
    return [match[1] for name in names if (match := _IMAGE.fullmatch(name))]


def _fetch(release: str, home: Path) -> None:
    """Download and unpack the packages of a kernel; from 7 on it is split into several."""
    image = f"linux-image-{release}"
    depends = _run("apt-cache", *_private(), "depends", "--important", "--recurse", image)
    names = set(re.findall(rf"linux-\w+-{re.escape(release)}\b", depends)) | {image}
    work = Path(tempfile.mkdtemp(prefix="fetch-", dir=KERNELS))
    try:
        _run("apt-get", *_private(), "download", *sorted(names), cwd=work)
        for package in work.glob("*.deb"):
            _run("dpkg-deb", "-x", str(package), str(work / "root"))
        _arrange(work)
        (work / "out").rename(home)
    finally:
        shutil.rmtree(work)


def _arrange(work: Path) -> None:
    """Make `out` of `root`: releases differ in where they have the kernel and its modules."""
    root, out = work / "root", work / "out"
    (out / "lib").mkdir(parents=True)
    images = [*root.glob("boot/vmlinuz-*"), *root.glob("usr/lib/modules/*/vmlinuz")]
    images[0].rename(out / "vmlinuz")
    modules = [*root.glob("lib/modules"), *root.glob("usr/lib/modules")]
    modules[0].rename(out / "lib/modules")
    _run("depmod", "-b", str(out), Kernel(out).release)


def _run(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(f"{' '.join(argv)}: {done.stderr.strip()[-300:]}")
    return done.stdout
