"""`python -m ldm_benchmark`, as `ldm benchmark` calls it."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
