"""Training programs as sides: each optimizer step is a turn, without changes to the program."""

import itertools
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import training
from .watch import Calls
from .workers import Turns


def train_script(path: Path, arguments: Sequence[str], device: str, turns: Turns) -> None:
    """Run a training script of diffusers as if from the command line."""
    stop_at_steps(turns, device)
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


def train_ours(config: Path, overrides: Sequence[str], device: str, turns: Turns) -> None:
    """Run our program `denoiser`, as `ldm train` does.

    Raises:
        RuntimeError: it failed; it has printed why.
    """
    stop_at_steps(turns, device)
    if code := training("denoiser").main([str(config), *overrides]):
        raise RuntimeError(f"the program ended with code {code}")


def stop_at_steps(turns: Turns, device: str) -> None:
    """End the turn after each optimizer step. A turn starts with what follows the step: average, log, next batch.

    Each turn also records the time of the forward and backward passes, and of the optimizer and the weight average.
    """
    import torch
    from diffusers import UNet2DConditionModel
    from diffusers.training_utils import EMAModel
    from torch.optim.optimizer import register_optimizer_step_post_hook

    watched = {
        "forward_backward_sec": [(UNet2DConditionModel, "forward"), (torch.Tensor, "backward")],
        "upkeep_sec": [
            (torch.optim.AdamW, "step"),
            (EMAModel, "step"),
            (training("loop.averages").WeightAverages, "update"),
        ],
    }
    parts = {name: [Calls(*method, device) for method in methods] for name, methods in watched.items()}

    def end(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        seconds = {name: sum(calls.inside_sec() for calls in part) for name, part in parts.items()}
        for calls in itertools.chain(*parts.values()):
            calls.clear()
        turns.next(details=seconds)

    register_optimizer_step_post_hook(end)
