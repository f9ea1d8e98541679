"""Run the demo: `python -m bench.demo`."""

import sys

from bench.demo.main import main

if __name__ == "__main__":
    sys.exit(main())
