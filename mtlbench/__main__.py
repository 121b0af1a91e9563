"""`python -m mtlbench`."""

import sys

from mtlbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
