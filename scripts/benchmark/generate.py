"""Generate an image: diffusers' pipeline against ours, with the same weights, noise and sampler."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from .image_cases import ENGINE, THEIRS, TORCH, TUNED, Case, cases_of
from .image_sides import MAKERS, make_several
from .models import call_flops, make_model
from .rows import Row, result_of, row_of, taken_of
from .samples import Setting, clean_median, machine, matmul_gflops
from .workers import Side, Taken, repeat_several, repeated, take_turns

CUDA_WARM_UPS = 3
"""CUDA graphs are recorded in a model's second and third calls."""


def generate(setting: Setting) -> dict[str, Any]:
    """Measure every case, with each of its sides against diffusers."""
    rows: list[Row] = []
    records: dict[str, Any] = {}
    peaks = [matmul_gflops(setting.device)]
    for case in cases_of(setting):
        with tempfile.TemporaryDirectory() as folder:
            for taken in turns_of(case, Path(folder), setting):
                rows += [row_of(case.title, taken, side, THEIRS, case.goals.get(side)) for side in taken][1:]
                for name, one in taken_of(taken).items():
                    records.setdefault(case.title, {}).setdefault(name, []).append(
                        one | overhead_of(taken[name])
                    )
        peaks.append(matmul_gflops(setting.device))
    return result_of(
        "generate",
        rows,
        device=setting.device,
        cases=[asdict(case) for case in cases_of(setting)],
        sides=records,
        matmul_gflops=max(peaks),
        share_of_matmul_peak={
            case.title: shares_of_peak(case, records, max(peaks)) for case in cases_of(setting)
        },
        machine=machine(),
    )


def shares_of_peak(case: Case, records: Mapping[str, Any], peak_gflops: float) -> dict[str, float]:
    """The rate of a side's UNet relative to a matrix multiplication, for sides that call it with two rows per step."""
    if case.shape is None:
        return {}
    whole = [side for side in (THEIRS, TUNED, TORCH, ENGINE) if side in records[case.title]]
    seconds = {side: records[case.title][side][0]["unet_sec"] for side in whole}
    operations = case.num_steps * call_flops(case.shape, case.size_px)
    return {side: operations / sec / peak_gflops / 1e9 for side, sec in seconds.items() if sec}


def turns_of(case: Case, folder: Path, setting: Setting) -> Iterator[dict[str, Taken]]:
    """Make the model and let the sides take turns: all together, or each one with diffusers."""
    model = case.model if case.shape is None else str(make_model(folder, case.shape, case.size_px))
    environment = ({"LDM_CACHE_DIR": str(folder / "cache")},)  # converted networks are deleted with it
    groups = [case.sides] if case.together or case.one_process else [(side,) for side in case.sides]
    for group in groups:
        sides = {
            name: Side(repeated(partial(MAKERS[name], model, case, setting.device)), environment)
            for name in ((THEIRS,) if case.one_process else (THEIRS, *group))
        }
        if case.one_process:
            several = partial(make_several, model, case, setting.device)
            sides["ldm"] = Side(partial(repeat_several, several), environment, works=group)
        warm_ups = CUDA_WARM_UPS if setting.device.startswith("cuda") else 1
        yield take_turns(sides, setting.rounds, setting.device, warm_ups)


def overhead_of(taken: Taken) -> dict[str, float | None]:
    """A side's time in the UNet and between its calls: medians of clean samples, in seconds."""
    return {name: clean_median(taken.samples, name) for name in ("unet_sec", "between_unet_calls_sec")}
