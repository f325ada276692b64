"""A training step with its data: diffusers' published script, or a loop of the same calls, against `ldm train`."""

import hashlib
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from .dataset import make_dataset
from .models import MEDIUM, SD15, SMALLEST, Shape, call_flops, make_model, num_weights
from .programs import train_ours, train_script
from .rows import Row, result_of, row_of, taken_of
from .samples import MIN_CLEAN, Scale, Setting, clean_median, machine, matmul_gflops
from .workers import Begin, Side, Taken, take_turns

LOOP = Path(__file__).with_name("reference_loop.py")
THEIRS, OURS = "diffusers' script", "ldm train"
STAND_IN = "loop of the script's calls"
GOAL = 5.0
LARGER = "training, SD1.5-size UNet, by arithmetic"
NEVER = 1_000_000
"""Steps that no run here comes to."""


@dataclass(frozen=True)
class Case:
    """What is trained, and on what."""

    name: str
    shape: Shape
    size_px: int
    batch_size: int
    num_images: int


CASES: Mapping[Scale, Case] = {
    "full": Case("36M UNet", MEDIUM, 256, 4, 16),
    "quick": Case("36M UNet", MEDIUM, 256, 2, 4),
    "smallest": Case("smallest UNet", replace(SMALLEST, num_groups=16), 64, 2, 4),
}


def train(setting: Setting) -> dict[str, Any]:
    """Steps of both by turns, once our cache is filled; and after how many epochs filling it has paid for itself."""
    case = CASES[setting.scale]
    theirs = THEIRS if setting.script else STAND_IN
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model = make_model(folder, case.shape, case.size_px)
        data = make_dataset(folder / "data", case.num_images, case.size_px)
        config = write_config(folder, model, data, case, setting.device)
        filled = take_turns({OURS: ours(folder, config, "first", setting.device)}, 0, setting.device)
        sides: dict[str, Side | Begin] = {
            theirs: reference(folder, model, data, case, setting, setting.script or LOOP),
            OURS: ours(folder, config, "second", setting.device),
        }
        if setting.script:  # how close the loop comes that replaces it elsewhere
            sides[STAND_IN] = reference(folder, model, data, case, setting, LOOP)
        taken = take_turns(sides, setting.rounds, setting.device)
    fill_sec = max(0.0, filled[OURS].ready_sec - taken[OURS].ready_sec)
    title = f"training, {case.name}, {case.size_px} px, batch {case.batch_size}"
    rows: list[Row] = [row_of(title, taken, OURS, theirs, GOAL)]
    larger, title = larger_ratio(taken[OURS], taken[theirs], case), f"{LARGER}, batch {case.batch_size}"
    rows.append(replace(rows[0], case=title, ratio=larger, goal=None, peak_memory_mb=None))
    if setting.script:
        rows.append(row_of(rows[0].case, taken, STAND_IN, theirs))
    return result_of(
        "train",
        rows,
        device=setting.device,
        reference=describe(setting.script),
        cache_fill_sec=fill_sec,
        paid_back_after_epochs=epochs_until_repaid(taken[OURS], taken[theirs], fill_sec, case),
        share_outside_passes={name: share_outside_passes(one) for name, one in taken.items()},
        sides=taken_of(taken),
        matmul_gflops=matmul_gflops(setting.device),
        machine=machine(),
    )


def write_config(folder: Path, model: Path, data: Path, case: Case, device: str) -> Path:
    """Our run's configuration: all else as the program has it by default."""
    cuda = device.startswith("cuda")
    tree = {
        "program": "denoiser",
        "base": str(model),
        "trainable": "unet",
        "num_steps": NEVER,
        "global_batch_size": case.batch_size,
        "save_every": NEVER,
        "preview_every": NEVER,
        "mixed_precision": "bf16" if cuda else "no",
        "device": "auto" if cuda else "cpu",
        "data": {"path": str(data), "height": case.size_px, "width": case.size_px},
        "cache": {"folder": str(folder / "cache")},
        "optim": {"learning_rate": 1e-4, "num_warmup_steps": 0, "lr_schedule": "constant"},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def ours(folder: Path, config: Path, run: str, device: str, overrides: Sequence[str] = ()) -> Begin:
    """`ldm train` in a new run directory, with the shared cache."""
    run_dir = json.dumps(str(folder / run))
    return partial(train_ours, config, [f"run_dir={run_dir}", *overrides], device)


def reference(folder: Path, model: Path, data: Path, case: Case, setting: Setting, program: Path) -> Side:
    """Their side, script or loop, told to do what ours does: crop the middle, keep an average of the weights."""
    arguments = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": data,
        "cache_dir": folder / "datasets",
        "output_dir": folder / program.stem,
        "resolution": case.size_px,
        "train_batch_size": case.batch_size,
        "max_train_steps": NEVER,
        "learning_rate": 1e-4,
        "mixed_precision": "bf16" if setting.device.startswith("cuda") else "no",
    }
    words = [f"--{name}={value}" for name, value in arguments.items()] + ["--center_crop", "--use_ema"]
    environment = {"ACCELERATE_USE_CPU": "1"} if setting.device == "cpu" else {}
    begin = partial(train_script, program, words, setting.device)
    return Side(begin, ({**environment, "HF_HUB_OFFLINE": "1"},))


def describe(script: Path | None) -> dict[str, Any]:
    """Which program stands on the other side."""
    path = script or LOOP
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"name": path.name, "sha256": digest, "published": script is not None}


def larger_ratio(ours: Taken, theirs: Taken, case: Case) -> float | None:
    """The ratio with Stable Diffusion 1.5's UNet, by arithmetic; None without a verdict.

    Of a step the passes are taken to grow with the UNet's operations and the upkeep with its weights; the rest, above
    all encoding, stays.
    """
    steps = [larger_step_sec(one, case) for one in (ours, theirs)]
    return None if steps[0] is None or steps[1] is None else steps[1] / steps[0]


def larger_step_sec(taken: Taken, case: Case) -> float | None:
    """The step of one side with Stable Diffusion 1.5's UNet."""
    parts = (clean_median(taken.samples, name) for name in (None, "forward_backward_sec", "upkeep_sec"))
    whole, passes, upkeep = parts
    if whole is None or passes is None or upkeep is None:
        return None
    operations, weights = (
        count(SD15, case.size_px) / count(case.shape, case.size_px) for count in (call_flops, num_weights)
    )
    return passes * operations + upkeep * weights + (whole - passes - upkeep)


def epochs_until_repaid(ours: Taken, theirs: Taken, fill_sec: float, case: Case) -> float | None:
    """Epochs of theirs that are over when ours, its cache filled first, has caught up; None without a verdict."""
    mine, other = clean_median(ours.samples), clean_median(theirs.samples)
    if mine is None or other is None or other <= mine:
        return None
    steps = case.num_images / case.batch_size
    return fill_sec / ((other - mine) * steps)


def share_outside_passes(taken: Taken) -> float | None:
    """The share of a step that is neither the UNet's forward pass nor the backward pass; None without a verdict.

    The median over the steps: their own times vary by more than this share.
    """
    clean = [sample for sample in taken.samples if sample.clean and "forward_backward_sec" in sample.details]
    shares = [1 - sample.details["forward_backward_sec"] / sample.wall_sec for sample in clean]
    return statistics.median(shares) if len(shares) >= MIN_CLEAN else None
