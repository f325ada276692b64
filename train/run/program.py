"""What every program's `main` does: read the settings, run or plan, and report a user's mistake in one line."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from ldm.config import load_settings
from ldm.errors import UserError
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
        program(settings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: the device is out of memory: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0
