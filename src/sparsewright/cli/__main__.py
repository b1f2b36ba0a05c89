"""`python -m sparsewright.cli`: the same as the command `sparsewright`."""

import sys

from . import main

sys.exit(main())
