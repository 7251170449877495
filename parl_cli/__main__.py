"""`python -m parl_cli` is `parl`."""

import sys

from parl_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
