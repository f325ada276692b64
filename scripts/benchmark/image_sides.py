"""The sides that generate an image: diffusers' pipeline and ours, with the same weights, noise and sampler.

Each side is set up in its own process and imports what it needs there.
"""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

from ldm.pipeline.settings import PRESETS

from .image_cases import COMPILED, ENGINE, FAST, HALF, THEIRS, TORCH, TUNED, Case
from .watch import Calls
from .workers import Answer, Work

PROMPT = "a red apple on a table"
SEED, GUIDANCE_SCALE, SAMPLER, WARM_UP_STEPS = 7, 7.5, "dpmpp_2m", 4


def make_theirs(model: str, case: Case, device: str, *, tuned: bool = False) -> Work:
    """diffusers as in its quick start, or tuned as its documentation recommends for the device, with our sampler."""
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    from ldm.diffusion.schedulers import make_scheduler
    from ldm.models.loading.source import find_model

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
    """Apply diffusers' speed recommendations: channels last, fused projections, and on CUDA a compiled UNet."""
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
    """Our pipeline, on torch or, if installed, on OpenVINO, with further arguments of `generate`."""
    given = arguments or {}
    pipeline = load_ours(model, device)
    if compiled:
        from ldm.models.engines.compiled import compile_denoiser

        compile_denoiser(pipeline.denoiser, 2, case.size_px // 8, case.size_px // 8, 77)
    calls = None if compiled else unet_calls(device)
    if engine and find_spec("openvino") and not device.startswith("cuda"):
        calls = use_openvino(pipeline, case, given.get("deep_features_every", 1) > 1)
    return image_work(pipeline, case, calls, given)


def make_several(model: str, case: Case, device: str) -> Mapping[str, Work]:
    """All our OpenVINO sides with one shared pipeline, whose network is split into passes."""
    pipeline = load_ours(model, device)
    calls = use_openvino(pipeline, case, True) if find_spec("openvino") else unet_calls(device)
    return {name: image_work(pipeline, case, calls, ARGUMENTS[name]) for name in case.sides}


def load_ours(model: str, device: str) -> Any:
    from ldm.pipeline.pipeline import load_pipeline

    return load_pipeline(model, device=device, dtype="bfloat16" if device.startswith("cuda") else None)


def unet_calls(device: str) -> Calls:
    from diffusers import UNet2DConditionModel

    return Calls(UNet2DConditionModel, "forward", device)


def use_openvino(pipeline: Any, case: Case, in_passes: bool) -> Calls:
    """Switch a pipeline to OpenVINO; returns the calls of its network."""
    from ldm.models.engines.openvino_denoiser import OpenVINODenoiser
    from ldm.pipeline.engine_choice import Work as PlannedWork
    from ldm.pipeline.engine_choice import choose_engine

    side = case.size_px // 8
    planned = PlannedWork(2, side, side, 77, in_passes)
    pipeline.engine = choose_engine("openvino", pipeline.denoiser, planned)
    return Calls(OpenVINODenoiser, "__call__", "cpu")


def image_work(pipeline: Any, case: Case, calls: Calls | None, arguments: Mapping[str, Any]) -> Work:
    """The work of generating one image."""

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
            **arguments,
        )
        return made.latents.numpy(), details_of(calls)

    return work


def details_of(calls: Calls | None) -> dict[str, float]:
    """The times of one image's UNet calls, which are then cleared; empty if it is compiled or split into passes."""
    if calls is None:
        return {}
    inside, between = calls.inside_sec(), calls.between_sec()
    calls.clear()
    return {} if between is None else {"unet_sec": inside, "between_unet_calls_sec": between}


ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    ENGINE: {"guidance_interval": (0.0, 1.0)},
    HALF: {"guidance_interval": (0.0, 0.5)},
    FAST: PRESETS["fast"],
}
"""Arguments of `generate` for our sides on the fastest engine."""

MAKERS: Mapping[str, Callable[[str, Case, str], Work]] = {
    THEIRS: make_theirs,
    TUNED: partial(make_theirs, tuned=True),
    TORCH: partial(make_ours, arguments=ARGUMENTS[ENGINE]),
    COMPILED: partial(make_ours, compiled=True, arguments=ARGUMENTS[ENGINE]),
    **{name: partial(make_ours, engine=True, arguments=given) for name, given in ARGUMENTS.items()},
}
