"""Training to inpaint with masked images from the cache, or encoded in each step: the same program, data and masks."""

import tempfile
from pathlib import Path
from typing import Any

from .models import make_dataset, make_model
from .rows import result_of, row_of, taken_of
from .samples import Setting, machine
from .train import CASES, ours, write_config
from .workers import take_turns

CACHED, BESIDE, PLAIN = "masked images cached", "masked images encoded in each step", "no cache"
GOAL = 3.0
NUM_VARIANTS = 4
"""Masks of each image, where they are cached."""

SETTINGS = {CACHED: (f"cache.mask_variants={NUM_VARIANTS}",), BESIDE: (), PLAIN: ("cache.enabled=false",)}
"""Without variants the masks are new in each epoch. The first epochs have the same masks on all sides."""


def tasks(setting: Setting) -> dict[str, Any]:
    """Time steps of all sides alternately, once their caches are filled. Samples a second are the batch over a step."""
    case = CASES[setting.scale]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model = make_model(folder, case.shape, case.size_px)
        data = make_dataset(folder / "data", case.num_images, case.size_px)
        config = write_config(folder, model, data, case, setting.device)
        sides = {
            name: ours(folder, config, name.replace(" ", "-"), setting.device, ["task=inpaint", *own])
            for name, own in SETTINGS.items()
        }
        taken = take_turns(sides, setting.rounds, setting.device)
    title = f"training to inpaint, {case.name}, {case.size_px} px, batch {case.batch_size}"
    return result_of(
        "tasks",
        [row_of(title, taken, CACHED, PLAIN, GOAL), row_of(title, taken, BESIDE, PLAIN)],
        device=setting.device,
        batch_size=case.batch_size,
        num_variants=NUM_VARIANTS,
        sides=taken_of(taken),
        machine=machine(),
    )
