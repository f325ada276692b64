"""Training programs as sides: each optimizer step is a turn, and the program knows nothing of it."""

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

    Of each turn it is also told how much of it the UNet's forward pass and the backward pass took.
    """
    import torch
    from diffusers import UNet2DConditionModel
    from torch.optim.optimizer import register_optimizer_step_post_hook

    passes = [Calls(UNet2DConditionModel, "forward", device), Calls(torch.Tensor, "backward", device)]

    def end(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        seconds = sum(calls.inside_sec() for calls in passes)
        for calls in passes:
            calls.clear()
        turns.next(details={"forward_backward_sec": seconds})

    register_optimizer_step_post_hook(end)
