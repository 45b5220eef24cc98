"""`python -m xengrant`: the same as the command `xengrant`."""

import sys

from xengrant.cli import main

if __name__ == "__main__":
    sys.exit(main())
