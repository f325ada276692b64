"""A picture from a prompt: diffusers' pipeline and ours, with the same weights, noise and sampler."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .models import MEDIUM, NARROW_VAE, SD15, SMALLEST, Shape, make_model
from .rows import Row, result_of, row_of, taken_of
from .samples import Scale, Setting, clean_median, machine, matmul_gflops
from .watch import Calls
from .workers import Answer, Side, Taken, Work, repeated, take_turns

PROMPT = "a red apple on a table"
SEED, GUIDANCE_SCALE, SAMPLER, WARM_UP_STEPS = 7, 7.5, "dpmpp_2m", 2

THEIRS, TORCH, ENGINE, HALF, FAST = "diffusers", "ldm", "ldm openvino", "ldm half guided", "ldm fast preset"
TUNED, COMPILED = "diffusers, tuned", "ldm compiled"


@dataclass(frozen=True)
class Case:
    """A model, and how pictures of it are made.

    Attributes:
        shape: of random weights, or None for the embedded model.
        goals: that the ratios to diffusers should reach, by side.
        together: whether all sides fit into the memory at once; else each stands alone against diffusers.
    """

    name: str
    shape: Shape | None
    size_px: int
    num_steps: int
    goals: Mapping[str, float]
    sides: tuple[str, ...] = (TUNED, TORCH, ENGINE, HALF, FAST)
    together: bool = True

    @property
    def title(self) -> str:
        return f"{self.name}, {self.size_px} px, {self.num_steps} steps"


EMBEDDED = Case("embedded model", None, 64, 20, {})
MEDIUM_CASE = Case(
    "36M UNet",
    # its autoencoder is narrow: the goals are of what sampling costs, and `decode` measures the rest
    replace(MEDIUM, text_width=512, text_layers=2, vae_channels=NARROW_VAE),
    256,
    20,
    {ENGINE: 1.3, HALF: 1.7},
)
SD15_CASE = Case("SD1.5-size UNet", SD15, 256, 20, {ENGINE: 1.6, HALF: 2.0, FAST: 3.5}, together=False)
CUDA_CASE = Case(
    "SD1.5-size UNet", SD15, 512, 20, {COMPILED: 2.0}, sides=(TUNED, TORCH, COMPILED, HALF, FAST)
)
CUDA_WARM_UPS = 3
"""CUDA graphs are recorded in a model's second and third calls."""

CASES: Mapping[Scale, tuple[Case, ...]] = {
    "full": (EMBEDDED, MEDIUM_CASE, SD15_CASE),
    # with 4 steps: decoding, the same on all sides, would weigh more than in 20
    "quick": (
        EMBEDDED,
        replace(MEDIUM_CASE, num_steps=8),
        replace(
            SD15_CASE,
            shape=replace(SD15, vae_channels=NARROW_VAE),
            num_steps=4,
            sides=(ENGINE, HALF, FAST),
        ),
    ),
    "smallest": (Case("smallest model", SMALLEST, 64, 4, {TORCH: 0.001}),),
}


def generate(setting: Setting) -> dict[str, Any]:
    """Every case, with each of its sides against diffusers."""
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
    more = {"sides": records, "matmul_gflops": max(peaks), "machine": machine()}
    return result_of(
        "generate", rows, device=setting.device, cases=[asdict(c) for c in cases_of(setting)], **more
    )


def cases_of(setting: Setting) -> tuple[Case, ...]:
    """What is measured: on CUDA one case, where there is room for all sides and no OpenVINO."""
    cases = (CUDA_CASE,) if setting.device.startswith("cuda") else CASES[setting.scale]
    if setting.device.startswith("cuda") and setting.scale == "smallest":
        cases = CASES["smallest"]
    without = ENGINE if not find_spec("openvino") or setting.device.startswith("cuda") else ""
    return tuple(replace(c, sides=tuple(s for s in c.sides if s != without)) for c in cases)


def turns_of(case: Case, folder: Path, setting: Setting) -> Iterator[dict[str, Taken]]:
    """Make the model and have the sides take turns: all at once, or each alone with diffusers."""
    model = "emoji" if case.shape is None else str(make_model(folder, case.shape, case.size_px))
    environment = ({"LDM_CACHE_DIR": str(folder / "cache")},)  # converted networks go when we do
    groups = [case.sides] if case.together else [(side,) for side in case.sides]
    for group in groups:
        sides = {
            name: Side(repeated(partial(MAKERS[name], model, case, setting.device)), environment)
            for name in (THEIRS, *group)
        }
        warm_ups = CUDA_WARM_UPS if setting.device.startswith("cuda") else 1
        yield take_turns(sides, setting.rounds, setting.device, warm_ups)


def overhead_of(taken: Taken) -> dict[str, float | None]:
    """What a side spends in the UNet, and between its calls: medians of clean samples, in seconds."""
    return {name: clean_median(taken.samples, name) for name in ("unet_sec", "between_unet_calls_sec")}


# The sides: each is made in its own process, and imports there what it needs.


def make_theirs(model: str, case: Case, device: str, *, tuned: bool = False) -> Work:
    """diffusers as its documentation begins; or tuned as that recommends for the device. The sampler is ours."""
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    from ldm.model_source import find_model
    from ldm.sampling import make_scheduler

    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    pipe = StableDiffusionPipeline.from_pretrained(
        find_model(model)[0], torch_dtype=dtype, safety_checker=None, requires_safety_checker=False
    ).to(device)
    pipe.scheduler = make_scheduler(SAMPLER, dict(pipe.scheduler.config))
    pipe.set_progress_bar_config(disable=True)
    if tuned:
        tune(pipe, device)
    compiled = tuned and device.startswith("cuda")
    calls = None if compiled else Calls(UNet2DConditionModel, "forward", device)

    def work(warming_up: bool) -> tuple[Answer, dict[str, float]]:
        kept: dict[str, Any] = {}

        def keep(_: Any, index: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
            kept.update(given)
            return given

        pipe(
            PROMPT,
            num_inference_steps=WARM_UP_STEPS if warming_up else case.num_steps,
            guidance_scale=GUIDANCE_SCALE,
            height=case.size_px,
            width=case.size_px,
            generator=torch.Generator("cpu").manual_seed(SEED),
            callback_on_step_end=keep,
        )
        return kept["latents"].float().cpu().numpy(), details_of(calls)

    return work


def tune(pipe: Any, device: str) -> None:
    """What diffusers' guide to speed recommends: channels last, joined projections, and on CUDA a compiled UNet."""
    import torch

    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    pipe.fuse_qkv_projections()
    if device.startswith("cuda"):
        pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead", fullgraph=True)


def make_ours(
    model: str,
    case: Case,
    device: str,
    *,
    engine: bool = False,
    compiled: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> Work:
    """Our pipeline, on torch or on OpenVINO where that is to be had, with more arguments of `generate`."""
    from diffusers import UNet2DConditionModel

    from ldm.engine_choice import Work as PlannedWork
    from ldm.engine_choice import choose_engine
    from ldm.models.compiled import compile_denoiser
    from ldm.models.engines import OpenVINODenoiser
    from ldm.pipeline import load_pipeline

    given = arguments or {}
    pipeline = load_pipeline(model, device=device, dtype="bfloat16" if device.startswith("cuda") else None)
    if compiled:
        compile_denoiser(pipeline.denoiser, 2, case.size_px // 8, case.size_px // 8, 77)
    calls = None if compiled else Calls(UNet2DConditionModel, "forward", device)
    if engine and find_spec("openvino") and not device.startswith("cuda"):
        planned = PlannedWork(
            2, case.size_px // 8, case.size_px // 8, 77, given.get("deep_features_every", 1) > 1
        )
        pipeline.engine = choose_engine("openvino", pipeline.denoiser, planned)
        calls = Calls(OpenVINODenoiser, "__call__", device)

    def work(warming_up: bool) -> tuple[Answer, dict[str, float]]:
        made = pipeline.generate(
            PROMPT,
            seed=SEED,
            num_inference_steps=WARM_UP_STEPS if warming_up else case.num_steps,
            guidance_scale=GUIDANCE_SCALE,
            guidance_rescale=0.0,
            scheduler=SAMPLER,
            height=case.size_px,
            width=case.size_px,
            **given,
        )
        return made.latents.numpy(), details_of(calls)

    return work


def make_fast(model: str, case: Case, device: str) -> Work:
    """`--preset fast` on the fastest engine."""
    from ldm.request import PRESETS

    return make_ours(model, case, device, engine=True, arguments=PRESETS["fast"])


def details_of(calls: Calls | None) -> dict[str, float]:
    """What the calls of one picture took, then forgotten; nothing where the UNet is compiled or cut in passes."""
    if calls is None:
        return {}
    inside, between = calls.inside_sec(), calls.between_sec()
    calls.clear()
    return {} if between is None else {"unet_sec": inside, "between_unet_calls_sec": between}


MAKERS: Mapping[str, Callable[[str, Case, str], Work]] = {
    THEIRS: make_theirs,
    TUNED: partial(make_theirs, tuned=True),
    TORCH: make_ours,
    COMPILED: partial(make_ours, compiled=True),
    ENGINE: partial(make_ours, engine=True),
    HALF: partial(make_ours, engine=True, arguments={"guidance_interval": (0.0, 0.5)}),
    FAST: make_fast,
}
