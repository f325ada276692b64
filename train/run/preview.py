"""Images generated during training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ldm.diffusion.sampling import denoise, plan_sampling
from ldm.diffusion.schedulers import make_scheduler
from ldm.io.images import image_grid
from ldm.io.png import write_chunks
from ldm.models.devices import lent
from ldm.models.generation_settings import GenerationSettings
from ldm.models.loading.model import ModelParts
from ldm.noise import image_generators, normal_per_image
from ldm.pipeline.decoding import decode_images
from ldm.pipeline.pipeline import Pipeline
from ldm.provenance.marks import EDITED, MADE, mark_texts
from ldm.tasks import Task, encoder_for
from ldm.tasks.guiding import told_guidance, without_branches

from ..loop.validation import evaluating
from ..settings.denoiser import PreviewSettings


@dataclass(frozen=True)
class PreviewInputs:
    """What previews are generated from.

    Attributes:
        prompts: N prompts.
        images: the images that the task needs by name, each [N, channels, H, W], and what it draws besides; of held-out
            or training samples.
        height: in pixels, `width` likewise; None is the model's own. A task with images has the size of its images.
    """

    prompts: Sequence[str]
    images: Mapping[str, Tensor] = field(default_factory=dict)
    height: int | None = None
    width: int | None = None


OnPreviewStep = Callable[[int, int], None]
"""Called after each sampling step with the steps done, and how many there are."""


def write_preview(
    parts: ModelParts,
    task: Task,
    settings: PreviewSettings,
    inputs: PreviewInputs,
    path: Path,
    device: torch.device,
    *,
    writes: bool = True,
    on_step: OnPreviewStep = lambda done, total: None,
) -> None:
    """Generate an image for each prompt and write them to `path` as a grid; image i has seed i.

    Args:
        writes: whether this process writes it; if the network is sharded, every process must call this.
        on_step: may raise an exception to stop; then nothing is written.
    """
    with on_device(parts, device), evaluating(parts.denoiser), evaluating(parts.text_encoder):
        if task.inputs.images:
            images = generate_with_inputs(parts, task, settings, inputs, device, on_step)
        else:
            images = _generate(parts, settings, inputs, on_step)
    if writes:
        texts = mark_texts(EDITED if task.inputs.images else MADE)
        write_chunks(path, image_grid(images, num_columns=min(8, len(images))), texts, overwrite=True)


def _generate(
    parts: ModelParts, settings: PreviewSettings, inputs: PreviewInputs, on_step: OnPreviewStep
) -> list[Image.Image]:
    made = Pipeline(parts, model_id="preview").generate(
        inputs.prompts,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        height=inputs.height,
        width=inputs.width,
        on_step=lambda done, total, step, latents: on_step(done, total),
        progress=False,
    )
    return made.images


@torch.no_grad()
def generate_with_inputs(
    parts: ModelParts,
    task: Task,
    settings: PreviewSettings,
    inputs: PreviewInputs,
    device: torch.device,
    on_step: OnPreviewStep = lambda done, total: None,
    *,
    first_seed: int = 0,
) -> list[Image.Image]:
    """An image for each prompt, of a task that takes images as well; their size is that of the input images.

    Args:
        first_seed: of the first image; each further one has the next.
    """
    images = {name: image.to(device) for name, image in inputs.images.items()}
    encode = encoder_for(task, parts.autoencoder)

    given = GenerationSettings(guidance_scale=settings.guidance_scale)
    chosen = task.completed(given, given)
    size = next(iter(images.values())).shape[2:]
    told = size[0], size[1]
    prompts = parts.encode(list(inputs.prompts), size=told)
    seeds = range(first_seed, first_seed + len(inputs.prompts))
    conditioning = task.generation_conditioning(prompts, task.prepared(images, chosen, seeds), encode)
    if parts.denoiser.embeds_guidance:
        conditioning = told_guidance(conditioning, settings.guidance_scale)
        chosen = without_branches(chosen)
    scheduler = make_scheduler(parts.defaults.scheduler, parts.scheduler_config)
    plan = plan_sampling(scheduler, settings.num_inference_steps)
    denoiser = task.guided(parts.denoiser, conditioning, parts.encode([""], size=told), chosen)
    generators = image_generators(seeds)
    height, width = told
    downscale = parts.autoencoder.pixels_per_latent
    shape = (parts.autoencoder.num_channels, height // downscale, width // downscale)
    noise = normal_per_image(generators, shape).to(device)
    steps = denoise(denoiser, plan, noise, conditioning, generators=generators)
    latents = noise
    for step, after in steps:
        latents = after
        on_step(step.index + 1, plan.num_steps)
    return decode_images(parts.autoencoder, latents)[0]


@contextmanager
def on_device(parts: ModelParts, device: torch.device) -> Iterator[None]:
    """Inside the block the encoders are on the device, which they leave once their outputs are cached.

    An encoder that is already there is not moved: `to` would reshard a network that was gathered.
    """
    encoders: tuple[nn.Module, ...] = (parts.autoencoder, parts.text_encoder)
    with ExitStack() as stack:
        for encoder in encoders:
            if _device_of(encoder).type != device.type:
                stack.enter_context(lent(encoder, device))
        yield


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
