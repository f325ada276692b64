"""The denoiser's model as a run starts with it: a base model, or a fresh UNet between trained parts."""

from pathlib import Path

import torch

from ldm.diffusion.consistency import NUM_FEW_STEPS, check_distillable
from ldm.diffusion.edm import EDMPath
from ldm.diffusion.flow import FlowPath
from ldm.diffusion.interval import EVERYWHERE
from ldm.diffusion.path import DDPMPath, ProbabilityPath
from ldm.diffusion.schedulers import few_step_config, trained_path
from ldm.diffusion.ve import VEPath
from ldm.diffusion.vp import VPPath
from ldm.errors import UserError
from ldm.models.adapters.folder import Base, find_base
from ldm.models.clip import ClipTextEncoder
from ldm.models.control.hints import HINT_KINDS
from ldm.models.fresh import add_class_labels, add_guidance_embedding, make_unet, widen_input
from ldm.models.loading.components import load_text_model, load_tokenizer, load_vae
from ldm.models.loading.folder import Defaults
from ldm.models.loading.model import ModelParts, load_parts
from ldm.models.loading.source import find_model
from ldm.models.low_resolution import LowResolutionNoise
from ldm.models.unet import UNetDenoiser
from ldm.models.vae import KLAutoencoder
from ldm.tasks import find_task
from ldm.tasks.control import CONTROL, LABELS

from ..loop.denoiser_loss import DenoiserLoss
from ..loop.distillation import Distillation, frozen_copy
from ..loop.reflow import load_teacher
from ..settings.denoiser import DenoiserSettings, PartsSettings
from .trainable import choose_trained


def make_loss(settings: DenoiserSettings, parts: ModelParts | None = None) -> DenoiserLoss:
    """The model with its loss, ready for training: a function of the settings alone.

    Args:
        parts: what `make_parts` returned, if it was called before; they are changed.

    Raises:
        UserError: a part is missing, or does not fit the settings.
    """
    parts = parts or make_parts(settings)
    path = path_of(settings, parts)
    distillation = begin_distillation(settings, parts, path) if settings.distill else None
    groups = choose_trained(parts, settings, seed=settings.seed, learning_rate=settings.optim.learning_rate)
    if settings.objective.timestep_distribution == "loss_aware" and not isinstance(path, DDPMPath):
        what = f"objective.timestep_distribution = 'loss_aware', but base = {settings.base} is of path {path.name}"
        raise UserError(what, "use uniform, or a base of path ddpm")
    reflow = settings.reflow
    teacher = load_teacher(reflow, parts, path, settings.prompt_chunks) if reflow else None
    return DenoiserLoss(parts, settings, path, groups, distillation, teacher)


def begin_distillation(settings: DenoiserSettings, parts: ModelParts, path: ProbabilityPath) -> Distillation:
    """The teacher of a distillation, and a model that becomes its student: with the sampler and settings for few steps.

    Raises:
        UserError: the base cannot be distilled.
    """
    distill = settings.distill
    assert distill is not None
    check_distillable(path, str(settings.base))
    if parts.denoiser.embeds_guidance:
        raise UserError(f"distill with base = {settings.base}", "it is distilled already: name its teacher")
    teacher = None
    if distill.trajectory == "teacher":
        teacher = frozen_copy(parts.denoiser, share=settings.is_adapter)
    distillation = Distillation(distill, teacher, parts.defaults.guidance_scale)
    if distill.embed_guidance:
        add_guidance_embedding(parts.denoiser.unet)
    parts.scheduler_config = few_step_config(parts.scheduler_config, distill.num_solver_steps)
    usual = sum(distillation.scales) / 2 if distill.embed_guidance else 1.0
    parts.defaults = parts.defaults.model_copy(
        update={
            "scheduler": "lcm",
            "num_inference_steps": NUM_FEW_STEPS,
            "guidance_scale": usual,
            "guidance_interval": EVERYWHERE,
        }
    )
    return distillation


def make_parts(settings: DenoiserSettings) -> ModelParts:
    """The model to train: `base`, or a fresh UNet between the trained `parts`.

    Raises:
        UserError: a part is missing, or the base model does not fit the task.
    """
    return load_base(settings) if settings.base is not None else make_fresh(settings)


def base_of_adapter(settings: DenoiserSettings, parts: ModelParts) -> Base | None:
    """The base that an adapter is to be trained on; None where the result is a whole model.

    Args:
        parts: what `make_parts` returned, before `make_loss` adds the adapter to it.
    """
    if settings.base is None or not settings.is_adapter:
        return None
    return find_base(settings.base, parts)


def load_base(settings: DenoiserSettings) -> ModelParts:
    """The base model, with the input channels that the task needs."""
    assert settings.base is not None
    check_controlnet(settings)
    parts = load_parts(find_model(settings.base)[0])
    # generation must not cut prompts shorter than the captions of this run
    num_chunks = max(parts.defaults.max_prompt_chunks, settings.prompt_chunks)
    parts.defaults = parts.defaults.model_copy(update={"max_prompt_chunks": num_chunks})
    fit_inputs(parts, settings)
    parts.task = settings.task
    parts.low_resolution = parts.low_resolution or low_resolution_noise(settings)
    return parts


def check_controlnet(settings: DenoiserSettings) -> None:
    """Check that a ControlNet is trained if and only if the task is for one, on hints resized as their kind needs.

    Raises:
        UserError: it is not.
    """
    task, named = (
        find_task(settings.task),
        f"task = {settings.task!r} with trainable = {settings.trainable!r}",
    )
    if task.trains_controlnet and settings.controlnet is None:
        raise UserError(named, "set trainable: controlnet and controlnet: {kind: canny}")
    if settings.controlnet is None:
        return
    kind = settings.controlnet.kind
    wanted = LABELS if HINT_KINDS[kind].resampling == "nearest" else CONTROL
    if settings.task != wanted:
        raise UserError(f"{named} and controlnet.kind = {kind!r}", f"set task: {wanted}")


def fit_inputs(parts: ModelParts, settings: DenoiserSettings) -> None:
    """Add the task's channels and class labels to a UNet that takes only latents; new weights are zero.

    Raises:
        UserError: the UNet takes others, or only an adapter is trained, which cannot hold the new weights.
    """
    latent_channels, task = parts.autoencoder.num_channels, find_task(settings.task)
    needed = (latent_channels + task.concat_channels(latent_channels), task.num_class_labels)
    given = (parts.denoiser.input_channels, parts.denoiser.num_class_labels)
    if given == needed:
        _check_low_resolution(parts, settings)
        return
    has = f"{given[0]} input channels{_labels(given[1])}"
    what = f"base = {settings.base} has a UNet with {has}, task {settings.task!r} needs {needed[0]}{_labels(needed[1])}"
    if given != (latent_channels, 0):
        raise UserError(what, "choose another base or task")
    if settings.is_adapter:
        raise UserError(what, "set trainable: unet, because an adapter cannot add channels")
    widen_input(parts.denoiser.unet, needed[0])
    if task.num_class_labels:
        add_class_labels(parts.denoiser.unet, task.num_class_labels)


def _labels(count: int) -> str:
    return f" and {count} class labels" if count else ""


def low_resolution_noise(settings: DenoiserSettings) -> LowResolutionNoise | None:
    """The noise of the low-resolution images that an upscaler is trained with; None for other tasks."""
    section = settings.task_settings
    return section if isinstance(section, LowResolutionNoise) else None


def _check_low_resolution(parts: ModelParts, settings: DenoiserSettings) -> None:
    """Refuse noise for low-resolution images that the base was not trained with.

    Raises:
        UserError: the settings name another one than the base has.
    """
    own, wanted = parts.low_resolution, low_resolution_noise(settings)
    if own is not None and wanted not in (None, LowResolutionNoise(), own):
        raise UserError(
            f"upscale is given, and base = {settings.base} was trained with other low-resolution noise",
            "leave upscale out: the base's is used",
        )


def make_fresh(settings: DenoiserSettings) -> ModelParts:
    """A fresh UNet with a trained autoencoder and text encoder."""
    assert settings.parts is not None
    data, task = settings.data, find_task(settings.task)
    autoencoder, text_encoder = load_autoencoder(settings.parts), load_text_encoder(settings.parts)
    unet = make_unet(
        settings.model,
        latent_channels=autoencoder.num_channels,
        concat_channels=task.concat_channels(autoencoder.num_channels),
        num_class_labels=task.num_class_labels,
        latent_size=data.height // autoencoder.pixels_per_latent,
        text_width=text_encoder.text_width,
        learn_variance=fresh_path(settings).reverse_steps is not None,
    )
    defaults = Defaults(
        height=data.height,
        width=data.width,
        max_prompt_chunks=settings.prompt_chunks,
        **settings.defaults.model_dump(),
    )
    scheduler_config = fresh_path(settings).scheduler_config()
    denoiser = UNetDenoiser(unet)
    return ModelParts(
        denoiser,
        autoencoder,
        text_encoder,
        scheduler_config,
        defaults,
        task=settings.task,
        low_resolution=low_resolution_noise(settings),
    )


def load_autoencoder(parts: PartsSettings) -> KLAutoencoder:
    """The autoencoder of a run of `autoencoder`, or of a model's folder."""
    own = parts.autoencoder / "autoencoder"
    folder = own if own.is_dir() else _part(parts.autoencoder / "vae", "autoencoder")
    return KLAutoencoder(load_vae(folder, torch.float32))


def load_text_encoder(parts: PartsSettings) -> ClipTextEncoder:
    """The text encoder and tokenizer of a run of `text_encoder`, or of a model's folder."""
    folder = _part(parts.text_encoder / "text_encoder", "text_encoder")
    tokenizer = load_tokenizer(parts.text_encoder / "tokenizer")
    return ClipTextEncoder(tokenizer, load_text_model(folder, torch.float32))


def _part(folder: Path, program: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist", f"finish a run of the program {program} first")
    return folder


def path_of(settings: DenoiserSettings, parts: ModelParts) -> ProbabilityPath:
    """The path to train on: that of the settings, or the one that `base` was trained on.

    Raises:
        UserError: the noise schedule of `base` is not supported.
    """
    if settings.base is None:
        return fresh_path(settings)
    return trained_path(parts.scheduler_config, settings.base)


def fresh_path(settings: DenoiserSettings) -> ProbabilityPath:
    """The path that the settings describe, for training from scratch."""
    match settings.path:
        case "ddpm":
            return DDPMPath(settings.schedule)
        case "flow":
            return FlowPath(settings.flow)
        case "edm":
            return EDMPath(settings.edm)
        case "vp":
            return VPPath(settings.vp)
        case "ve":
            return VEPath(settings.ve)


def size_multiple(parts: ModelParts) -> int:
    """What image sides must be multiples of, since autoencoder and UNet halve them: pixels."""
    levels = len(parts.denoiser.unet.config.block_out_channels)
    return int(parts.autoencoder.pixels_per_latent * 2 ** (levels - 1))
