"""`python -m kernels check`."""

import sys

from kernels.check.command import main

sys.exit(main())
