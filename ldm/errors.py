"""Errors and warnings for users: one line that says what is wrong and what to do about it."""

import inspect
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from types import FrameType

OURS = ("ldm", "train", "ldm_train")
WRAPPERS = ("contextlib", "torch")
"""Packages whose decorators, such as `torch.no_grad`, add frames between our functions and their callers."""


class UserError(Exception):
    """A mistake that the user can fix; the command line prints it as one line and exits with code 2.

    Args:
        what: what is wrong, naming the file, key or value.
        hint: what to do about it.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        self.what = what
        self.hint = hint
        super().__init__(f"{what}: {hint}" if hint else what)


SYNONYMS: dict[str, tuple[str, ...]] = {
    "steps": ("num_steps", "num_inference_steps"),
    "max_steps": ("num_steps",),
    "max_train_steps": ("num_steps",),
    "iterations": ("num_steps",),
    "epochs": ("num_steps",),
    "num_epochs": ("num_steps",),
    "num_train_epochs": ("num_steps",),
    "cfg": ("guidance_scale",),
    "cfg_scale": ("guidance_scale",),
    "guidance": ("guidance_scale",),
    "sampler": ("scheduler",),
    "sampler_name": ("scheduler",),
    "lr": ("learning_rate",),
    "lr_scheduler": ("lr_schedule",),
    "warmup": ("num_warmup_steps",),
    "warmup_steps": ("num_warmup_steps",),
    "lr_warmup_steps": ("num_warmup_steps",),
    "batch": ("global_batch_size", "batch_size"),
    "batch_size": ("global_batch_size",),
    "train_batch_size": ("global_batch_size",),
    "micro_batch_size": ("max_micro_batch",),
    "output": ("run_dir",),
    "output_dir": ("run_dir",),
    "model": ("base",),
    "base_model": ("base",),
    "pretrained_model_name_or_path": ("base", "model"),
    "precision": ("mixed_precision",),
    "dtype": ("mixed_precision",),
    "ema": ("ema_decay",),
    "save_steps": ("save_every",),
    "checkpointing_steps": ("save_every",),
    "sample_every": ("preview_every",),
    "validation_steps": ("every",),
    "validation_prompts": ("prompts",),
    "network_dim": ("rank",),
    "network_alpha": ("alpha",),
    "snr_gamma": ("min_snr_gamma",),
    "noise_offset": ("offset_noise",),
    "caption_dropout": ("dropout",),
    "images": ("num_images",),
    "n": ("num_images",),
    "neg": ("negative_prompt",),
    "negative": ("negative_prompt",),
    "size": ("height",),
    "resolution": ("height",),
}
"""What other programs call a setting, and its names here in order of preference."""


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that `name` was most likely meant to be, or None if nothing is close.

    A name that other programs use for the same thing comes before names that are spelled alike.
    """
    choices = list(choices)
    named = [each for each in SYNONYMS.get(name.replace("-", "_").lower(), ()) if each in choices]
    return next(iter(named or get_close_matches(name, choices, n=1, cutoff=0.5)), None)


def closest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that is spelled nearly like `name`: for long lists of choices, where many are a little alike."""
    return next(iter(get_close_matches(name, list(choices), n=1, cutoff=0.8)), None)


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a name that is not in a fixed list; it suggests the nearest one that is."""
    choices = list(choices)
    guess = nearest(name, choices)
    hint = f"did you mean {guess!r}? " if guess else ""
    return UserError(f"unknown {kind} {name!r}", f"{hint}choose from {', '.join(choices)}")


class LdmWarning(UserWarning):
    """Something the user should know about a result that is produced all the same."""


def warn(message: str) -> None:
    """Issue an `LdmWarning` that points to the first calling line outside this package."""
    frame = inspect.currentframe()
    level = 1
    while frame is not None and _top_package(frame) in (*OURS, *WRAPPERS):
        frame, level = frame.f_back, level + 1
    warnings.warn(LdmWarning(message), stacklevel=level)


def _top_package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
