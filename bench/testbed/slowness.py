"""How much slower than a machine of its own the kernel runs that all this runs under.

All limits of time in tests and testbed are multiplied by it. It is 1 but in an emulated machine:
the kernel lab sets the variable.
"""

import os

VARIABLE = "VMLINK_SLOWNESS"
SLOWNESS = int(os.environ.get(VARIABLE, "1"))
