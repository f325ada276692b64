"""Program: the denoiser, a cross-attention UNet trained on latents with the DDPM objective.

`python -m train.denoiser CONFIG key=value ...` or `ldm train CONFIG`. Rerun the same command to resume.
From scratch (`parts:` names a trained autoencoder and text encoder) or from a whole model (`base:`), of which
`trainable:` says what is trained. The run's `pipeline/` is a stock diffusers folder, or an adapter.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ldm.data.batches import ReadImage, read_pixels
from ldm.data.captions import directional_words, plain_caption
from ldm.data.prepare import BucketedSample
from ldm.diffusion.path import DDPMPath
from ldm.diffusion.schedulers import training_path
from ldm.errors import UserError
from ldm.models.adapters.folder import Base, find_base
from ldm.models.clip import ClipTextEncoder
from ldm.models.fresh import make_unet
from ldm.models.loading.components import load_text_model, load_tokenizer, load_vae
from ldm.models.loading.folder import Defaults
from ldm.models.loading.model import ModelParts, load_parts
from ldm.models.loading.source import find_model
from ldm.models.unet import UNetDenoiser
from ldm.models.vae import KLAutoencoder

from .data.latents import cached_prompts, image_reader, latent_samples
from .data.read import TrainingData, read_data, write_data_report
from .data.streams import begin_stream, check_streaming, streamed_samples
from .loop.denoiser_loss import DenoiserLoss
from .loop.validation import ValidationSamples, held_out_loss
from .plan.plan import make_plan
from .run.after_steps import Validate
from .run.best import lend_best
from .run.preview import write_preview
from .run.program import run_program
from .run.run import Run
from .run.state import TrainState, give_weights
from .run.trainable import apply_memory_settings, check_base, choose_trained, save_trained
from .settings.denoiser import DenoiserSettings, PartsSettings


def make_parts(settings: DenoiserSettings) -> ModelParts:
    """The model to train: loaded whole, or a fresh UNet between trained parts.

    Raises:
        UserError: a part is missing, or the image size does not suit the autoencoder.
    """
    if settings.base is not None:
        parts = load_parts(find_model(settings.base)[0])
        # what captions are read in here is not to be cut off in generation
        num_chunks = max(parts.defaults.max_prompt_chunks, settings.prompt_chunks)
        parts.defaults = replace(parts.defaults, max_prompt_chunks=num_chunks)
        return parts
    assert settings.parts is not None
    autoencoder, text_encoder = load_autoencoder(settings.parts), load_text_encoder(settings.parts)
    unet = make_unet(
        settings.model,
        latent_channels=autoencoder.num_channels,
        latent_size=settings.data.height // autoencoder.pixels_per_latent,
        text_width=text_encoder.text_width,
    )
    scheduler_config = DDPMPath(settings.schedule).scheduler_config()
    data = settings.data
    defaults = Defaults(
        height=data.height,
        width=data.width,
        max_prompt_chunks=settings.prompt_chunks,
        **settings.defaults.model_dump(),
    )
    return ModelParts(UNetDenoiser(unet), autoencoder, text_encoder, scheduler_config, defaults)


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


def schedule_of(settings: DenoiserSettings, parts: ModelParts) -> DDPMPath:
    """The path to train on: the settings' own, or with `base` the one the model was made with; UserError if unknown."""
    if settings.base is None:
        return DDPMPath(settings.schedule)
    return DDPMPath(training_path(parts.scheduler_config, settings.base))


def make_loss(settings: DenoiserSettings) -> DenoiserLoss:
    """The model set up for training, as a run begins with it: a function of the settings alone."""
    parts = make_parts(settings)
    rate = settings.optim.learning_rate
    groups = choose_trained(parts, settings, seed=settings.seed, learning_rate=rate)
    return DenoiserLoss(parts, settings, schedule_of(settings, parts), groups)


def size_multiple(parts: ModelParts) -> int:
    """What image sides must be multiples of: the autoencoder and the UNet halve them so often."""
    levels = len(parts.denoiser.unet.config.block_out_channels)
    return int(parts.autoencoder.pixels_per_latent * 2 ** (levels - 1))


def check_size(settings: DenoiserSettings, multiple: int) -> None:
    """Refuse an image size that the networks cannot halve often enough."""
    for name in ("height", "width"):
        value = getattr(settings.data, name)
        if value % multiple:
            raise UserError(f"data.{name} = {value}", f"choose a multiple of {multiple} for this model")


def warn_flips(placed: Sequence[BucketedSample]) -> None:
    """Say which captions a mirrored image would make false, where flips are on and the data does not say."""
    samples = [one.sample for one in placed if one.sample.may_flip is None]
    unsaid = [s for s in samples if any(directional_words(c) for c in s.captions)]
    if unsaid:
        print(
            f"warning: data.flip is on; {len(unsaid)} captions name a direction and are never mirrored, "
            f"for instance {unsaid[0].text!r}; letters and one-sided things are not recognised",
            file=sys.stderr,
        )


def held_out(
    run: Run,
    settings: DenoiserSettings,
    module: DenoiserLoss,
    data: TrainingData,
    images: tuple[str, ReadImage],
) -> Validate:
    """What measures the loss on the held-out samples, each with its first caption.

    Raises:
        UserError: there are none.
    """
    dataset = latent_samples(settings, module.parts.autoencoder, data.held_out, images, first=len(data.train))
    samples = ValidationSamples(
        dataset,
        [plain_caption(one.sample, settings.captions) for one in data.held_out],
        num_timesteps_per_sample=settings.validation.num_timesteps_per_sample,
        buckets=[one.size for one in data.held_out],
    )

    def validate(state: TrainState) -> dict[str, float]:
        return held_out_loss(
            module,
            samples,
            batch_size=settings.validation.batch_size,
            device=run.device,
            average=state.average,
            autocast=run.accelerator.autocast,
        )

    return validate


def set_up(run: Run, settings: DenoiserSettings) -> tuple[DenoiserLoss, Base | None, int]:
    """The model set up on the run's device, what an adapter stands on, and what image sides are multiples of."""
    check_base(settings, settings.base)
    # hashed only where the hash is kept: it reads every weight of the base
    base = find_base(settings.base) if settings.base is not None and settings.is_adapter else None
    module = make_loss(settings)
    multiple = size_multiple(module.parts)
    check_size(settings, multiple)
    apply_memory_settings(module.parts, settings, run.device)
    return module, base, multiple


def plan(settings: DenoiserSettings) -> None:
    """Say what training would be and cost, measured. Nothing is written, but the memo of what the images are.

    Raises:
        UserError: what training would raise before its first step; or the data is a stream.
    """
    if settings.data.streaming:
        raise UserError("--plan of data.streaming = true", "only what is read before a run can be planned")
    run = Run(settings, planning=True)
    module, _, multiple = set_up(run, settings)
    data = read_data(run, multiple=multiple, folder=settings.cache.root(), rehash=settings.cache.rehash)
    if settings.validation.every:
        held_out(run, settings, module, data, ("pixel_values", read_pixels(data.held_out)))
    made = make_plan(
        run, settings, module, data, partial(latent_samples, settings, module.parts.autoencoder, data.train)
    )
    if run.main:
        print(made)


def train(settings: DenoiserSettings) -> None:
    """Train, then write `pipeline/` into the run directory."""
    run = Run(settings)
    module, base, multiple = set_up(run, settings)
    train_on = train_on_stream if settings.data.streaming else train_on_all
    state = train_on(run, settings, module, multiple)
    if run.main:
        if settings.validation.keep_best:
            lend_best(run.run_dir, state.average)
        with state.average.applied():
            save_trained(plain_parts(run, settings, module, state), run.run_dir / "pipeline", settings, base)
        print(f"trained: {run.run_dir / 'pipeline'}")


def plain_parts(run: Run, settings: DenoiserSettings, module: DenoiserLoss, state: TrainState) -> ModelParts:
    """The model with the weights that the module has now, in modules that can be written."""
    if not run.sharded:
        return module.parts
    fresh = make_loss(settings)  # FSDP's modules cannot be copied, and writing copies them
    give_weights(fresh, state.average.live, run.run_dir)
    return fresh.parts


def train_on_all(run: Run, settings: DenoiserSettings, module: DenoiserLoss, multiple: int) -> TrainState:
    """Train on samples that are all read before the run."""
    parts = module.parts
    data = read_data(run, multiple=multiple, folder=settings.cache.root(), rehash=settings.cache.rehash)
    if settings.data.flip and run.main:
        warn_flips(data.train)
    everything = [*data.train, *data.held_out]
    images = image_reader(run, everything, parts.autoencoder, settings.cache)
    module.prompts = cached_prompts(run, everything, parts.text_encoder, settings)
    dataset = latent_samples(settings, parts.autoencoder, data.train, images)
    validate = held_out(run, settings, module, data, images) if settings.validation.every else None

    def preview(state: TrainState, path: Path) -> None:
        with state.average.applied():
            write_preview(parts, settings, data.train, path, run.device, writes=run.main)

    return run.train(
        module,
        dataset,
        bucket_of=[one.size for one in data.train],
        preview=preview,
        validate=validate,
        opened=lambda: write_data_report(run.run_dir, data, parts.text_encoder, settings.prompt_chunks),
    )


def train_on_stream(run: Run, settings: DenoiserSettings, module: DenoiserLoss, multiple: int) -> TrainState:
    """Train on shards that are read as they come.

    Raises:
        UserError: the settings need all samples before the run, or a source has no shards.
    """
    check_streaming(settings)
    parts = module.parts
    images = image_reader(run, (), parts.autoencoder, settings.cache)
    module.prompts = cached_prompts(run, (), parts.text_encoder, settings)
    dataset = streamed_samples(settings, latent_samples(settings, parts.autoencoder, (), images))

    def preview(state: TrainState, path: Path) -> None:
        with state.average.applied():
            write_preview(parts, settings, (), path, run.device, writes=run.main)

    stream = begin_stream(run, settings, parts.text_encoder, multiple)
    return run.train(module, dataset, stream=stream, preview=preview)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    return run_program(DenoiserSettings, train, argv, plan)


if __name__ == "__main__":
    sys.exit(main())
