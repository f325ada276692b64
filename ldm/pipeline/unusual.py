"""Warnings of what is allowed and yet hardly meant: weights in a prompt, guidance or sizes far from the model's own."""

import math
import re
from collections.abc import Iterable

from ldm.errors import warn
from ldm.models.generation_settings import GenerationSettings

LORA_WEIGHT = 3.0
"""LoRAs are used at 1, some at up to about 2 in either direction."""

_TIMES_GUIDANCE, _LEAST_GUIDANCE = 3.0, 20.0
_TIMES_PIXELS = 6.0
_LORA_TAG = re.compile(r"<(lora|lyco|hypernet):[^<>]+>")
_WEIGHT = re.compile(r"\([^()]*:\s*[-+]?\d*\.?\d+\s*\)")


def warn_of_prompts(prompts: Iterable[str], *, reads_weights: bool = False) -> None:
    """Warn of syntax of other programs, which is read as plain words here.

    Args:
        reads_weights: weights in prompts are not plain words.
    """
    for prompt in dict.fromkeys(prompts):
        if tag := _LORA_TAG.search(prompt):
            warn(
                f"{tag[0]} in a prompt is read as words: give LoRAs with --lora FILE:WEIGHT (loras= in Python)"
            )
        if not reads_weights and (weight := _WEIGHT.search(prompt)):
            warn(f"{weight[0]} in a prompt is read as words: --prompt-weights a1111 reads it as a weight")


def warn_of_settings(
    settings: GenerationSettings,
    defaults: GenerationSettings,
    size: tuple[int, int] | None = None,
    *,
    any_size: bool = False,
) -> None:
    """Warn of settings far from the model's own.

    Args:
        settings: none of them left open.
        defaults: the model's.
        size: height and width of what is made at once; by default of the image.
        any_size: whether sizes make no difference, as the image given says what is where.
    """
    own = defaults.model_defaults()
    scale, usual = settings.guidance_scale, own["guidance_scale"]
    if scale > max(_LEAST_GUIDANCE, _TIMES_GUIDANCE * usual):
        warn(f"guidance_scale {scale:g} is far above this model's own {usual:g}: colours will be garish")
    size = size or (settings.height, settings.width)
    pixels, usual_pixels = size[0] * size[1], own["height"] * own["width"]
    if not any_size and not 1 / _TIMES_PIXELS <= pixels / usual_pixels <= _TIMES_PIXELS:
        shown, own_size = f"{size[1]} x {size[0]}", f"{own['width']} x {own['height']}"
        warn(f"{shown} pixels are far from this model's own {own_size}: expect repeated or broken motifs")


def warn_of_lora(name: str, weight: float) -> None:
    """Warn of a weight at which a LoRA drowns the model."""
    if math.isfinite(weight) and abs(weight) > LORA_WEIGHT:
        warn(
            f"the LoRA {name} has weight {weight:g}: 1 is as trained, and beyond {LORA_WEIGHT:g} images break"
        )
