"""`python -m cifarnets` is the command `cifarnets`."""

import sys

from cifarnets.cli import main

sys.exit(main())
