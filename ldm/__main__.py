"""The program `ldm`, also as `python -m ldm`: signals are answered from the start, while the rest is imported."""

import sys

from ldm.io.standard_streams import forgive_output, open_missing_streams
from ldm.io.stopping import Stopped, stopping


def main() -> None:
    """Run the command line of this process, and exit."""
    open_missing_streams()
    forgive_output("stderr")
    try:
        with stopping():
            from ldm.cli.app import main as run

            run()
    except Stopped as stop:
        print("stopped", file=sys.stderr)
        sys.exit(stop.exit_code)


if __name__ == "__main__":
    main()
