"""Builds what is in C: the client, installed as the script `vmlink`, and the guard's eBPF program.

All else is in pyproject.toml.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from distutils.command.build_scripts import build_scripts
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

FLAGS = shlex.split(
    "-std=gnu11 -O2 -Wall -Wextra -Wformat=2 -Wshadow -Wconversion"
    " -D_FORTIFY_SOURCE=2 -fstack-protector-strong -Wl,-z,relro,-z,now,-z,noexecstack -s"
)

# -mcpu=v2: Linux 5.10 knows more, but a verifier that old follows 32-bit jumps less well.
GUARD_FLAGS = shlex.split("-target bpf -mcpu=v2 -O2 -Wall -Wextra -Werror")

CC = shlex.split(os.environ.get("CC", "cc"))
# The client starts for each CNI call. Static saves the loader's 0.1 ms; glibc's start asks CPUID
# some dozen times, which a hypervisor traps: 0.5 ms in a VM, where musl starts in 0.1.
COMPILERS = (["musl-gcc", "-static"], [*CC, "-static"])


class BuildClient(build_scripts):
    """`scripts` for a binary: the usual one opens its sources as Python."""

    def copy_scripts(self) -> tuple[list[str], list[str]]:
        """Compile each source; return what was built, twice, as distutils wants it."""
        self.mkpath(self.build_dir)
        targets = [self.compile(Path(source)) for source in self.scripts]
        return targets, targets

    def compile(self, source: Path) -> str:
        """Compile one program by the first compiler that can; return its path."""
        target = str(Path(self.build_dir, source.stem))
        version = f'-DVMLINK_VERSION="{self.distribution.get_version()}"'
        extra = shlex.split(os.environ.get("CFLAGS", ""))
        rest = [*FLAGS, version, *extra, str(source), "-o", target]
        for compiler in COMPILERS:
            try:
                subprocess.run([*compiler, *rest], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                continue
            return target
        subprocess.run([*CC, *rest], check=True)
        return target


class BuildGuard(build_py):
    """The packages, with the guard's program compiled beside its source."""

    source = Path("cni/kernel/guard/guard.bpf.c")

    def run(self) -> None:
        """Compile it, in place for an editable install, and build the packages."""
        super().run()
        beside = Path() if self.editable_mode else Path(self.build_lib)
        target = (beside / self.source).with_suffix(".o")
        self.mkpath(str(target.parent))
        # Debian has the kernel's <asm/types.h> in a directory of the architecture.
        headers = f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH') or ''}"
        clang = shlex.split(os.environ.get("CLANG", "clang"))
        arguments = [*GUARD_FLAGS, headers, "-c", str(self.source), "-o", str(target)]
        try:
            subprocess.run([*clang, *arguments], check=True)
        except FileNotFoundError as e:
            raise SystemExit(f"{clang[0]} is missing; install clang, or name one in CLANG") from e


class PlatformDistribution(Distribution):
    """Gives the wheel a platform tag."""

    def has_ext_modules(self) -> bool:
        """Return that it has compiled parts."""
        return True


setup(
    # Where `vmlinkctl install` finds them when there is no source tree.
    data_files=[
        ("share/vmlink", sorted(str(p) for p in Path("conf").iterdir() if p.is_file())),
        ("share/vmlink/hooks.d", sorted(map(str, Path("conf/hooks.d").glob("*.json")))),
    ],
    scripts=["cni/plugins/vmlink.c"],
    cmdclass={"build_scripts": BuildClient, "build_py": BuildGuard},
    distclass=PlatformDistribution,
    ext_modules=[],
)
