"""`python -m export3d` is the `export3d` command."""

import sys

from export3d.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
