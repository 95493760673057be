"""`python -m cifarnets`, which is the command `cifarnets`."""

import sys

from cifarnets.cli import main

if __name__ == "__main__":
    sys.exit(main())
