"""`python -m ldm_benchmark`, which `ldm benchmark` runs."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
