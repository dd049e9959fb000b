"""`python -m equilibria` is `equilibria`."""

import sys

from equilibria.cli.app import main

sys.exit(main())
