"""What every program's `main` does: read the settings, run or plan, and report a user's mistake in one line."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from ldm.config import load_settings
from ldm.errors import UserError
from ldm.io.files import FULL
from ldm.io.messages import every_warning, say_error
from ldm.io.standard_streams import forgive_output, open_missing_streams
from ldm.io.stopping import Stopped, stopping
from ldm.models.devices import is_out_of_memory, keep_freed_memory

from ..settings.shared import TrainSettings
from .signals import Interrupted

AnyTrainSettings = TypeVar("AnyTrainSettings", bound=TrainSettings)

PLAN = "--plan"
"""The argument that describes a run instead of starting it."""


def _planner(
    plan: Callable[[AnyTrainSettings], None] | None, program: str
) -> Callable[[AnyTrainSettings], None]:
    if plan is None:
        raise UserError(f"{PLAN} works only with the program denoiser, not {program}", "leave it out")
    return plan


def run_program(
    kind: type[AnyTrainSettings],
    program: Callable[[AnyTrainSettings], None],
    argv: Sequence[str] | None = None,
    plan: Callable[[AnyTrainSettings], None] | None = None,
) -> int:
    """A program's `main`: read `CONFIG key=value ...`, run, and report a user's mistake in one line with exit code 2.

    Args:
        plan: called instead of `program` if `--plan` is among the arguments.
    """
    if argv is None:
        open_missing_streams()
        forgive_output("stdout", "stderr")
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if not arguments or arguments[0].startswith("-"):
            raise UserError(
                "no configuration file given", f"usage: {kind.__name__} CONFIG.yaml key=value ..."
            )
        settings = load_settings(kind, Path(arguments[0]), [each for each in arguments[1:] if each != PLAN])
        if PLAN in arguments:
            program = _planner(plan, settings.program)
        keep_freed_memory()
        with stopping(), every_warning():
            program(settings)
    except UserError as error:
        say_error(str(error))
        return 2
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        say_error(f"the device is out of memory: {str(error).splitlines()[0]}")
        return 2
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except (
        Stopped
    ) as stopped:  # before the first step, or after the last one: what is encoded or saved is kept
        print("stopped; run the same command to go on", file=sys.stderr)
        return stopped.exit_code
    except OSError as error:
        if error.errno not in FULL:
            raise
        say_error(f"{error.filename or 'a file'}: the disk is full: free some space and run again")
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0
