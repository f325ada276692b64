"""Starts a training program by name: `python -m train.run.start PROGRAM CONFIG key=value ...`

Importing a program takes seconds. A signal during that time is answered in one line, like any later one.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from ldm.io.standard_streams import forgive_output, open_missing_streams
from ldm.io.stopping import Stopped, stopping


def main(argv: Sequence[str]) -> int:
    """Run the program that `argv[0]` names; returns the exit code."""
    open_missing_streams()
    forgive_output("stdout", "stderr")
    assert __package__
    try:
        with stopping():
            program = import_module(f"{__package__.rpartition('.')[0]}.{argv[0]}")
            return int(program.main(list(argv[1:])))
    except Stopped as stop:
        print("stopped before the training program had started", file=sys.stderr)
        return stop.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
