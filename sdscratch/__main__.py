"""`python -m sdscratch` is `sdscratch`."""

import sys

from sdscratch.cli import main

if __name__ == "__main__":
    sys.exit(main())
