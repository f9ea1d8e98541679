"""Builds the C client and installs it as the script `vmlink`; all else is in pyproject.toml."""

from __future__ import annotations

import os
import shlex
import subprocess
from distutils.command.build_scripts import build_scripts
from pathlib import Path

from setuptools import Distribution, setup

FLAGS = shlex.split(
    "-std=gnu11 -O2 -Wall -Wextra -Wformat=2 -Wshadow -Wconversion"
    " -D_FORTIFY_SOURCE=2 -fstack-protector-strong -Wl,-z,relro,-z,now,-z,noexecstack -s"
)

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
    cmdclass={"build_scripts": BuildClient},
    distclass=PlatformDistribution,
    ext_modules=[],
)
