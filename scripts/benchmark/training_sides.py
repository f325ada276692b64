"""Training programs as sides: each optimizer step is a turn, and the program knows nothing of it."""

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
    """Run a training script of diffusers' kind as if from the command line."""
    stop_at_steps(turns, device)
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


def train_ours(config: Path, overrides: Sequence[str], device: str, turns: Turns) -> None:
    """Run our program `denoiser`, as `ldm train` does.

    Raises:
        RuntimeError: it failed, having said why.
    """
    stop_at_steps(turns, device)
    if code := training("denoiser").main([str(config), *overrides]):
        raise RuntimeError(f"the program ended with code {code}")


def stop_at_steps(turns: Turns, device: str) -> None:
    """End a turn at each optimizer step, so that one begins and ends with what follows it: average, log, next batch.

    Of each turn it is also told how much of it the UNet's forward pass and the backward pass took, and how much the
    optimizer and the average of the weights.
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
            (training("averages").WeightAverages, "update"),
        ],
    }
    parts = {name: [Calls(*method, device) for method in methods] for name, methods in watched.items()}

    def end(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        seconds = {name: sum(calls.inside_sec() for calls in part) for name, part in parts.items()}
        for calls in itertools.chain(*parts.values()):
            calls.clear()
        turns.next(details=seconds)

    register_optimizer_step_post_hook(end)
