"""The denoiser's training data as the loop takes it: all samples read before the run, or shards of a stream."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from ldm.data.batches import collate
from ldm.data.captions import directional_words, plain_caption, possible_captions
from ldm.data.prepare import BucketedSample
from ldm.data.streaming import StreamOrder
from ldm.evaluation.paired import Scores
from ldm.io.messages import say_warning
from ldm.models.clip import ClipTextEncoder
from ldm.tasks import Task

from ..loop.denoiser_loss import DenoiserLoss
from ..loop.state import TrainState
from ..loop.validation import ValidationSamples, held_out_loss
from ..run.after_steps import Validate
from ..run.denoiser_model import size_multiple
from ..run.image_evaluation import ImageEvaluation
from ..run.preview import PreviewInputs
from ..run.run import Run
from ..settings.denoiser import DenoiserSettings
from .latents import ImageReaders, cached_prompts, image_readers, latent_samples, measured_deviation
from .read import TrainingData, read_data, write_data_report
from .streams import begin_stream, check_streaming, streamed_samples

MAX_PREVIEWED, PREVIEW_SHARE = 8, 0.1
"""By default, the most captions of which previews are drawn, and the share of the run's cost that they may add."""


@dataclass(frozen=True)
class DenoiserData:
    """What `Run.train` and the previews take.

    Attributes:
        preview: the prompts of the settings, or the first captions, and the images that the task needs.
        bucket_of: the size of each sample; empty for a stream. `sample_ids` likewise.
        stream: makes the order of a stream; None if all samples are read before the run.
        validate: measures the loss on held-out samples; None if that is off.
        evaluate: measures images generated from held-out captions; None if that is off.
        opened: writes the data report, once the run's directory exists.
    """

    dataset: "Dataset[Any]"
    preview: PreviewInputs
    bucket_of: Sequence[tuple[int, int]] = ()
    sample_ids: Sequence[str] = ()
    stream: Callable[[int, Mapping[str, Any]], StreamOrder] | None = None
    validate: Validate | None = None
    evaluate: Validate | None = None
    opened: Callable[[], None] = lambda: None


def read_samples(run: Run, settings: DenoiserSettings, loss: DenoiserLoss) -> DenoiserData:
    """Read all samples, and fill the cache with their latents and prompt embeddings.

    Raises:
        UserError: images are missing or bad, or the data of a resumed run has changed.
    """
    parts, data = loss.parts, read_training_data(run, settings, loss)
    if run.main:
        warn_data(settings, data, parts.text_encoder)
    samples = [*data.train, *data.held_out]
    readers = image_readers(run, samples, parts.autoencoder, settings)
    loss.prompts = cached_prompts(run, samples, parts.text_encoder, settings)
    if settings.base is None and settings.path == "edm" and settings.edm.sigma_data is None:
        loss.use_deviation(measured_deviation(readers, len(data.train), parts.autoencoder))
    return DenoiserData(
        latent_samples(settings, parts.autoencoder, data.train, readers, loss.task.inputs, loss.tells_sizes),
        preview_inputs(settings, data.train, loss.task),
        bucket_of=[one.size for one in data.train],
        sample_ids=data.sample_ids,
        validate=validation(run, settings, loss, data, readers) if settings.validation.every else None,
        evaluate=image_evaluation(run, settings, loss, data) if settings.validation.evaluate_every else None,
        opened=lambda: write_data_report(run.run_dir, data, parts.text_encoder, settings.prompt_chunks),
    )


def read_training_data(run: Run, settings: DenoiserSettings, loss: DenoiserLoss) -> TrainingData:
    """The samples of a run of the denoiser, not yet encoded; errors as `read_data`."""
    multiple = size_multiple(loss.parts)
    return read_data(
        run,
        folder=settings.cache.root(),
        multiple=multiple,
        rehash=settings.cache.rehash,
        inputs=loss.task.inputs,
        missing=settings.captions.missing,
    )


def open_stream(run: Run, settings: DenoiserSettings, loss: DenoiserLoss) -> DenoiserData:
    """Samples that are read from shards during the run.

    Raises:
        UserError: the settings need all samples before the run, or a source has no shards.
    """
    check_streaming(settings)
    parts = loss.parts
    if loss.task.inputs.images:
        run.warn(f"no previews of the task {loss.task.name}: a stream has no images before the run")
    readers = image_readers(run, (), parts.autoencoder, settings)
    loss.prompts = cached_prompts(run, (), parts.text_encoder, settings)
    return DenoiserData(
        streamed_samples(
            settings,
            latent_samples(settings, parts.autoencoder, (), readers, loss.task.inputs, loss.tells_sizes),
        ),
        PreviewInputs(settings.preview.prompts, {}, *preview_size(settings)),
        stream=begin_stream(run, settings, parts.text_encoder, size_multiple(parts)),
    )


def preview_inputs(
    settings: DenoiserSettings, samples: Sequence[BucketedSample], task: Task
) -> PreviewInputs:
    """The prompts of the settings, or the captions of the first samples; with the images of the first samples."""
    if task.inputs.images:  # stacked, so of one size
        samples = [one for one in samples if one.size == samples[0].size]
    captions = (plain_caption(one.sample, settings.captions) for one in samples[: num_previewed(settings)])
    prompts = settings.preview.prompts or tuple(captions)
    shown = [samples[i % len(samples)] for i in range(len(prompts))]
    return PreviewInputs(prompts, given_images(settings.seed, shown, task), *preview_size(settings))


def given_images(seed: int, shown: Sequence[BucketedSample], task: Task) -> dict[str, torch.Tensor]:
    """What a task is given besides the prompts, from samples of one size, by name."""
    given = {
        image.name: torch.stack([one.input_pixels(image) for one in shown]) for image in task.inputs.images
    }
    drawn = collate([preview_draws(seed, one, task) for one in shown]) if shown else {}
    return given | {name: values for name, values in drawn.items() if isinstance(values, torch.Tensor)}


def preview_draws(seed: int, one: BucketedSample, task: Task) -> dict[str, Any]:
    """What a task draws for a previewed sample, and what it makes of its image."""
    inputs, key = task.inputs, (seed, 0, one.sample.sample_id)
    drawn = dict(inputs.draw(key, one.size)) if inputs.draw else {}
    return drawn | (dict(inputs.derive(one.pixels(), key)) if inputs.derive else {})


def preview_size(settings: DenoiserSettings) -> tuple[int, int]:
    """The height and width of previews in pixels: those of the settings, or of the training images."""
    preview, data = settings.preview, settings.data
    return preview.height or data.height, preview.width or data.width


def num_previewed(settings: DenoiserSettings) -> int:
    """How many captions are previewed by default: as many as cost `PREVIEW_SHARE` of the run, from 1 to 8.

    Costs are counted in forward passes of one sample; the backward pass of a training step costs as much as two.
    """
    preview, (height, width) = settings.preview_settings, preview_size(settings)
    num_previews = -(-settings.num_steps // settings.preview_every)
    relative_size = height * width / (settings.data.height * settings.data.width)
    branches = 2 if preview.guidance_scale > 1 else 1
    of_one_caption = num_previews * preview.num_inference_steps * branches * relative_size
    of_training = 3 * settings.num_steps * settings.global_batch_size
    return max(1, min(MAX_PREVIEWED, int(PREVIEW_SHARE * of_training / of_one_caption)))


def validation(
    run: Run,
    settings: DenoiserSettings,
    loss: DenoiserLoss,
    data: TrainingData,
    readers: ImageReaders,
) -> Validate:
    """A function that measures the loss on the held-out samples, each with its first caption.

    Args:
        readers: of the training samples, followed by the held-out samples.

    Raises:
        UserError: there are none.
    """
    own = readers.starting_at(len(data.train))
    dataset = latent_samples(
        settings, loss.parts.autoencoder, data.held_out, own, loss.task.inputs, loss.tells_sizes
    )
    samples = ValidationSamples(
        dataset,
        [plain_caption(one.sample, settings.captions) for one in data.held_out],
        num_timesteps_per_sample=settings.validation.num_timesteps_per_sample,
        buckets=[one.size for one in data.held_out],
    )

    def validate(state: TrainState) -> Mapping[str, float | Scores]:
        losses = torch.zeros(len(samples), dtype=torch.float64)
        found = held_out_loss(
            loss,
            samples,
            batch_size=settings.validation.batch_size,
            device=run.device,
            average=state.average,
            processes=run.processes,
            autocast=run.accelerator.autocast,
            losses=losses,
        )
        return {**found, "validation_loss_scores": Scores.of_mean(losses)}

    return validate


def image_evaluation(
    run: Run, settings: DenoiserSettings, loss: DenoiserLoss, data: TrainingData
) -> ImageEvaluation:
    """What measures images generated from the captions of the held-out samples.

    Raises:
        UserError: there are too few of them for the measurement that decides, or an extractor cannot be loaded.
    """
    held_out = data.held_out
    if loss.task.inputs.images:  # stacked, so of one size: the most frequent one
        sizes = Counter(one.size for one in held_out)
        held_out = [one for one in held_out if one.size == sizes.most_common(1)[0][0]]
        size = held_out[0].size
    else:
        size = preview_size(settings)
    return ImageEvaluation(
        run,
        settings,
        loss,
        held_out,
        size,
        given=lambda shown: given_images(settings.seed, shown, loss.task),
    )


def warn_data(settings: DenoiserSettings, data: TrainingData, text_encoder: ClipTextEncoder) -> None:
    """Warn of data that trains, but perhaps not as its owner expects."""
    if settings.data.flip:
        warn_flips(data.train)
    if len(data.train) == 1:
        say_warning(
            "there is only one image to train on: the model learns to repeat it; ten or more are better"
        )
    warn_cut_captions(settings, [*data.train, *data.held_out], text_encoder)


def warn_cut_captions(
    settings: DenoiserSettings, placed: Sequence[BucketedSample], text_encoder: ClipTextEncoder
) -> None:
    """Warn of captions that are longer than the text encoder reads, and name the words that one of them loses."""
    room, chunks = text_encoder.tokens_read(settings.prompt_chunks), settings.prompt_chunks
    unshuffled = settings.captions.model_copy(update={"shuffle_tags": False, "dropout": 0.0})
    texts = {text for one in placed for text in possible_captions(one.sample, unshuffled) or ()}
    # a token has at least one byte, so most captions need not be tokenized
    cut = sorted(
        text for text in texts if len(text.encode()) + 2 > room and text_encoder.truncated_words(text, chunks)
    )
    if cut:
        lost = text_encoder.truncated_words(cut[0], chunks)
        shown = lost if len(lost) <= 60 else f"{lost[:57]}..."
        say_warning(
            f"{len(cut)} of {len(texts)} captions are longer than {room} tokens and are cut; for instance {shown!r} is "
            "not read: shorten them, or set a larger prompt_chunks"
        )


def warn_flips(placed: Sequence[BucketedSample]) -> None:
    """Warn of captions that a mirrored image would contradict, if flips are on and the data does not say."""
    samples = [one.sample for one in placed if one.sample.may_flip is None]
    unsaid = [s for s in samples if any(directional_words(c) for c in s.captions)]
    if unsaid:
        say_warning(
            f"data.flip is on; {len(unsaid)} images whose captions name a direction are never mirrored, "
            f"for instance {unsaid[0].text!r}; text and asymmetric objects are not recognised"
        )
