"""Program: the denoiser, a cross-attention UNet trained on latents with the DDPM objective.

`python -m train.denoiser CONFIG key=value ...` or `ldm train CONFIG`. Rerun the same command to resume.
From scratch (`parts:` names a trained autoencoder and text encoder) or from a whole model (`base:`). The run's
`pipeline/` is a stock diffusers folder with the averaged weights.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ldm.config import Settings
from ldm.data.batches import ImageTransform, LatentSamples, encode_samples
from ldm.data.captions import directional_words
from ldm.data.folder import read_folder
from ldm.data.sample import Sample, holdout_split
from ldm.errors import UserError
from ldm.images import image_grid
from ldm.model_folder import Defaults
from ldm.model_parts import ModelParts, load_parts
from ldm.models.autoencoder import KLAutoencoder
from ldm.models.denoiser import UNetDenoiser
from ldm.models.fresh import DenoiserShape, make_unet
from ldm.models.loading import load_text_model, load_tokenizer, load_vae
from ldm.models.text import ClipTextEncoder
from ldm.objective import ObjectiveSettings, diffusion_loss, timestep_at
from ldm.pipeline import Pipeline
from ldm.schedule import NoiseSchedule, ScheduleSettings

from .loop import Batch
from .run import Run, run_program
from .settings import TrainSettings
from .state import TrainState


class PartsSettings(Settings):
    """Trained parts for a denoiser from scratch."""

    autoencoder: Path = Field(description="run directory of `autoencoder`")
    text_encoder: Path = Field(description="run directory of `text_encoder`")


class PreviewSettings(Settings):
    """The pictures drawn during training, always from the same noise."""

    prompts: tuple[str, ...] = Field((), description="default: the captions of the first eight images")
    num_inference_steps: int = Field(20, ge=1)
    guidance_scale: float = Field(3.0, ge=0)


class SamplingDefaults(Settings):
    """What the finished model is best sampled with; written into its ldm.json."""

    num_inference_steps: int = Field(25, ge=1)
    guidance_scale: float = Field(3.0, ge=0)
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    scheduler: str = "dpmpp_2m"


class DenoiserSettings(TrainSettings):
    """Settings of the program `denoiser`."""

    program: Literal["denoiser"]
    base: Path | None = Field(
        None, description="a model folder to go on from; `parts` and `model` are then its own"
    )
    parts: PartsSettings | None = None
    model: DenoiserShape = DenoiserShape()
    schedule: ScheduleSettings = ScheduleSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    caption_dropout: float = Field(0.1, ge=0, lt=1, description="share of empty captions, for guidance")
    train_text_encoder: bool = Field(False, description="train the text encoder together with the denoiser")
    preview: PreviewSettings = PreviewSettings()
    defaults: SamplingDefaults = SamplingDefaults()

    def model_post_init(self, _: Any) -> None:
        if (self.base is None) == (self.parts is None):
            raise ValueError("give either base: MODEL or parts: {autoencoder, text_encoder}")


class DenoiserTask(nn.Module):
    """Denoiser, text encoder and objective as one module: a batch in, one loss a sample out."""

    def __init__(self, parts: ModelParts, settings: DenoiserSettings, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.denoiser, self.text_encoder = parts.denoiser, parts.text_encoder
        self.denoiser.requires_grad_(True)
        self.text_encoder.requires_grad_(settings.train_text_encoder)
        self.settings, self.schedule = settings, schedule
        self.sample_posterior = parts.autoencoder.sample_posterior

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample `loss` [b] from moments, captions and the draws that the loader made."""
        latents = self.sample_posterior(batch["moments"], batch["posterior_noise"])
        timesteps = timestep_at(batch["position"], self.schedule, self.settings.objective)
        with nullcontext() if self.settings.train_text_encoder else torch.no_grad():
            prompt_embeds = self.text_encoder(batch["caption"])
        loss = diffusion_loss(
            self.denoiser,
            latents,
            batch["noise"],
            timesteps,
            prompt_embeds,
            self.schedule,
            self.settings.objective,
        )
        return {"loss": loss}


def make_parts(settings: DenoiserSettings) -> ModelParts:
    """The model to train: loaded whole, or a fresh UNet between trained parts.

    Raises:
        UserError: a part is missing, or the image size does not suit the autoencoder.
    """
    if settings.base is not None:
        return load_parts(settings.base)
    assert settings.parts is not None
    autoencoder, text_encoder = load_autoencoder(settings.parts), load_text_encoder(settings.parts)
    unet = make_unet(
        settings.model,
        latent_channels=autoencoder.num_channels,
        latent_size=settings.data.height // autoencoder.pixels_per_latent,
        text_width=text_encoder.text_width,
    )
    scheduler_config = NoiseSchedule(settings.schedule).scheduler_config()
    data = settings.data
    defaults = Defaults(height=data.height, width=data.width, **settings.defaults.model_dump())
    return ModelParts(UNetDenoiser(unet), autoencoder, text_encoder, scheduler_config, defaults)


def load_autoencoder(parts: PartsSettings) -> KLAutoencoder:
    """The autoencoder of a run of `autoencoder`."""
    folder = _part(parts.autoencoder / "autoencoder", "autoencoder")
    return KLAutoencoder(load_vae(folder, torch.float32))


def load_text_encoder(parts: PartsSettings) -> ClipTextEncoder:
    """The text encoder and tokenizer of a run of `text_encoder`."""
    folder = _part(parts.text_encoder / "text_encoder", "text_encoder")
    tokenizer = load_tokenizer(parts.text_encoder / "tokenizer")
    return ClipTextEncoder(tokenizer, load_text_model(folder, torch.float32))


def _part(folder: Path, program: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist", f"finish a run of the program {program} first")
    return folder


def schedule_of(settings: DenoiserSettings, parts: ModelParts) -> NoiseSchedule:
    """The path to train on: the settings' own, or with `base` the one the model was made with."""
    if settings.base is None:
        return NoiseSchedule(settings.schedule)
    known = ScheduleSettings.model_fields
    return NoiseSchedule(ScheduleSettings(**{k: v for k, v in parts.scheduler_config.items() if k in known}))


def check_size(settings: DenoiserSettings, autoencoder: KLAutoencoder, num_levels: int) -> None:
    """Refuse an image size that the autoencoder and the UNet cannot halve often enough."""
    multiple = autoencoder.pixels_per_latent * 2 ** (num_levels - 1)
    for name in ("height", "width"):
        value = getattr(settings.data, name)
        if value % multiple:
            raise UserError(f"data.{name} = {value}", f"choose a multiple of {multiple} for this model")


def warn_flips(samples: Sequence[Sample]) -> None:
    """Say which captions a mirrored image would make false, where flips are on and the data does not say."""
    unsaid = [s for s in samples if s.may_flip is None and any(directional_words(c) for c in s.captions)]
    if unsaid:
        print(
            f"warning: data.flip is on; {len(unsaid)} captions name a direction and are never mirrored, "
            f"for instance {unsaid[0].text!r}; letters and one-sided things are not recognised",
            file=sys.stderr,
        )


def train(settings: DenoiserSettings) -> None:
    """Train, then write `pipeline/` into the run directory."""
    run = Run(settings)
    data = settings.data
    samples, _ = holdout_split(read_folder(data.path), data.holdout_fraction, settings.seed)
    if data.flip and run.main:
        warn_flips(samples)
    parts = make_parts(settings)
    check_size(settings, parts.autoencoder, len(parts.denoiser.unet.config.block_out_channels))
    schedule = schedule_of(settings, parts)
    task = DenoiserTask(parts, settings, schedule)
    dataset = LatentSamples(
        samples,
        _moments(run, samples, parts.autoencoder),
        seed=settings.seed,
        caption_dropout=settings.caption_dropout,
    )

    def preview(state: TrainState, path: Path) -> None:
        with state.average.applied():
            write_preview(parts, settings, samples, path)

    state = run.train(task, dataset, preview=preview)
    if run.main:
        with state.average.applied():
            Pipeline(parts, model_id=run.run_dir.name).save(run.run_dir / "pipeline", replace=True)
        print(f"trained: {run.run_dir / 'pipeline'}")


def _moments(run: Run, samples: Sequence[Sample], autoencoder: KLAutoencoder) -> Tensor:
    data = run.settings.data
    autoencoder.to(run.device).eval().requires_grad_(False)

    def encode_images(pixel_values: Tensor) -> Tensor:
        with torch.no_grad():
            return autoencoder.encode(pixel_values.to(run.device))

    if run.main:
        print(f"encoding {len(samples)} images", file=sys.stderr)
    return encode_samples(samples, ImageTransform(data.height, data.width), encode_images, flip=data.flip)


def write_preview(
    parts: ModelParts, settings: DenoiserSettings, samples: Sequence[Sample], path: Path
) -> None:
    """A row of pictures of the preview prompts, image i from seed i."""
    chosen = settings.preview
    prompts = chosen.prompts or tuple(s.text for s in samples[:8])
    parts.denoiser.eval(), parts.text_encoder.eval()
    images = (
        Pipeline(parts, model_id="preview")
        .generate(
            prompts, num_inference_steps=chosen.num_inference_steps, guidance_scale=chosen.guidance_scale
        )
        .images
    )
    parts.denoiser.train(), parts.text_encoder.train()
    image_grid(images, num_columns=min(8, len(images))).save(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(DenoiserSettings, train, argv)


if __name__ == "__main__":
    sys.exit(main())
