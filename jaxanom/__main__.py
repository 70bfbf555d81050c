"""`python -m jaxanom` is the same program as `jaxanom`."""

import sys

from jaxanom.cli import main

if __name__ == "__main__":
    sys.exit(main.main())
