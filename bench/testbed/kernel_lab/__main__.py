"""Run a command under another kernel: `python -m bench.testbed.kernel_lab 6.1 uname -r`."""

from __future__ import annotations

import argparse
import sys

from bench.testbed.image import ImageError, image
from bench.testbed.kernel_lab import kernels, machine
from bench.testbed.node import exit_on_sigterm


def main() -> int:
    """Fetch the kernel and run the command; returns its exit status, or 125 when there is none."""
    parser = argparse.ArgumentParser(prog="kernel_lab", description=__doc__)
    parser.add_argument("version", help="6.1, 6.1.0-30 and the like, or newest")
    parser.add_argument("--seconds", type=float, default=3600, help="limit for the command")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    exit_on_sigterm()
    try:
        image()  # the lab has no network with which to fetch what guests in it need
        return machine.run(kernels.find(options.version), options.command, options.seconds)
    except (kernels.KernelError, ImageError) as error:
        print(f"kernel lab: {error}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main())
