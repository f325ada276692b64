"""The program `ldm`, also as `python -m ldm`: signals are answered from the start, while the rest is imported."""

import os
import sys

from ldm.io.standard_streams import forgive_output, open_missing_streams
from ldm.io.stopping import Stopped, stopping


def main() -> None:
    """Run the command line of this process, and exit."""
    # huggingface_hub, transformers and diffusers read this once, when they are imported. Telemetry would tell the Hub
    # what runs here, and one malformed answer to it, kept for a day, makes every later call of huggingface_hub fail
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
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
