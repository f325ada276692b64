"""What every program's `main` does: read the settings, run or plan, and report a user's mistake in one line."""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from ldm.config import load_settings
from ldm.errors import LdmWarning, UserError
from ldm.io.files import FULL
from ldm.io.standard_streams import forgive_output, open_missing_streams
from ldm.io.stopping import Stopped, stopping
from ldm.models.devices import is_out_of_memory, keep_freed_memory

from ..settings.shared import TrainSettings
from .signals import Interrupted

AnyTrainSettings = TypeVar("AnyTrainSettings", bound=TrainSettings)

PLAN = "--plan"
"""The argument that describes a run instead of starting it."""


@contextmanager
def own_warnings() -> Iterator[None]:
    """Print our own warnings on one line each; those of libraries appear as they do by default."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, LdmWarning):
            print(f"warning: {message}", file=sys.stderr)
        else:
            default(message, category, *where, **more)

    default = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always", LdmWarning)
        warnings.showwarning = show
        yield


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
        with stopping(), own_warnings():
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
    except (
        Stopped
    ) as stopped:  # before the first step, or after the last one: what is encoded or saved is kept
        print("stopped; run the same command to go on", file=sys.stderr)
        return stopped.exit_code
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(
            f"error: {error.filename or 'a file'}: the disk is full: free some space and run again",
            file=sys.stderr,
        )
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0
