"""Latents and prompt embeddings for the denoiser, from the cache or encoded in each step."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from ldm.data.batches import LatentSamples, ReadImage, read_inputs, read_pixels
from ldm.data.cache.drawn import drawn_items, drawn_keys
from ldm.data.cache.keys import combined_hash, tensors_hash
from ldm.data.cache.moments import (
    CacheItem,
    MomentsCache,
    cache_items,
    moments_reader,
    variant_keys,
)
from ldm.data.cache.prompt_cache import PromptCache
from ldm.data.captions import plain_caption, possible_captions
from ldm.data.prepare import BucketedSample
from ldm.data.sample import MAIN_INPUT, NO_INPUTS, TaskInputs
from ldm.models.clip import ClipTextEncoder
from ldm.models.devices import lent
from ldm.models.vae import KLAutoencoder
from ldm.tasks import find_task
from ldm.types import Conditioning

from ..loop.denoiser_loss import EmbedPrompts, frozen_encoder
from ..run.run import Run
from ..settings.denoiser import DenoiserSettings


@dataclass(frozen=True)
class ImageReaders:
    """How a batch gets its images.

    Attributes:
        kind: what it has of the main image, "moments" or "pixel_values".
        main: reads the main image of a sample.
        inputs: read the images that the task needs, by `ImageInput.key`.
        drawn: read each variant of an image that the task draws, by its name.
    """

    kind: str
    main: ReadImage
    inputs: Mapping[str, ReadImage] = field(default_factory=dict)
    drawn: Mapping[str, Sequence[ReadImage]] = field(default_factory=dict)

    def starting_at(self, first: int) -> "ImageReaders":
        """The same readers for a part of their samples, which starts at number `first`."""
        inputs = {key: partial(_read_from, read, first) for key, read in self.inputs.items()}
        drawn = {name: [partial(_read_from, one, first) for one in read] for name, read in self.drawn.items()}
        return ImageReaders(self.kind, partial(_read_from, self.main, first), inputs, drawn)


def _read_from(read: ReadImage, first: int, index: int, crop: int, flip: bool) -> Tensor:
    return read(first + index, crop, flip)


def image_readers(
    run: Run, placed: Sequence[BucketedSample], autoencoder: KLAutoencoder, settings: DenoiserSettings
) -> ImageReaders:
    """The images of `placed`, which the autoencoder encodes in each step, or their moments from the cache.

    With the cache, all processes first encode what is missing; then the autoencoder leaves the device.
    """
    inputs = pixel_readers(placed, settings)
    if not settings.cache.enabled:
        autoencoder.to(run.device)
        return ImageReaders("pixel_values", read_pixels(placed), inputs)
    autoencoder_hash = tensors_hash(autoencoder.vae)
    cache = MomentsCache(settings.cache.root(), autoencoder_hash)
    entries = CachedEntries(placed, settings, autoencoder_hash)
    encode = partial(encode_images_on, run.device, autoencoder)
    wanted = entries.items()
    with (
        lent(autoencoder, run.device),
        run.progress("encoding images", "image", len(wanted)) as on_progress,
    ):
        cache.fill(
            wanted,
            encode,
            rank=run.processes.rank,
            num_processes=run.processes.num_processes,
            barrier=run.processes.barrier,
            on_progress=on_progress,
        )
    if encodes_in_training(settings):
        autoencoder.to(run.device)
    cache.encode_again_from(entries.items, encode)
    main, *others = (moments_reader(cache, own) for own in entries.keys)
    cached = dict(zip((image.key for image in entries.images[1:]), others, strict=True))
    drawn = [moments_reader(cache, own) for own in entries.drawn]
    name = drawn_name(settings)
    return ImageReaders("moments", main, inputs | cached, {name: drawn} if name else {})


MAX_MEASURED = 1000
"""How many images the standard deviation of the latents is measured on."""


def measured_deviation(readers: ImageReaders, num_samples: int, autoencoder: KLAutoencoder) -> float:
    """The standard deviation of scaled latents, over all channels and positions, to four digits.

    It is measured on the first `MAX_MEASURED` images, from their moments in the cache: a latent's variance is that of
    its mean plus that of its posterior. The sums are in float64 on the CPU, so every process and a resumed run get
    the same number.
    """
    count, total, squares = 0, 0.0, 0.0
    for index in range(min(num_samples, MAX_MEASURED)):
        moments = readers.main(index, 0, False)[None].cpu()
        mean, one_off = (
            autoencoder.sample_posterior(moments, torch.full_like(moments.chunk(2, dim=1)[0], z)).double()
            for z in (0.0, 1.0)
        )
        count += mean.numel()
        total += float(mean.sum())
        squares += float((mean.square() + (one_off - mean).square()).sum())
    return float(f"{(squares / count - (total / count) ** 2) ** 0.5:.4g}")


def drawn_name(settings: DenoiserSettings) -> str | None:
    """The name of the image that the task draws, if its variants are cached."""
    image = find_task(settings.task).inputs.drawn_image
    return image.name if image and settings.cache.enabled and settings.cache.mask_variants else None


def encodes_in_training(settings: DenoiserSettings) -> bool:
    """Whether the autoencoder is needed in each step although there is a cache."""
    return find_task(settings.task).encodes_in_training and drawn_name(settings) is None


def pixel_readers(placed: Sequence[BucketedSample], settings: DenoiserSettings) -> dict[str, ReadImage]:
    """Read the images that the task needs from their files; not the main one, if what is made of it is cached."""
    skipped = MAIN_INPUT.key if drawn_name(settings) else None
    images = find_task(settings.task).inputs.images
    return {image.key: read_inputs(placed, image) for image in images if image.key != skipped}


class CachedEntries:
    """What the cache shall hold of some samples.

    Attributes:
        images: those that are encoded, the main one first.
        keys: of each of them.
        drawn: the keys of each variant of an image that the task draws.
    """

    def __init__(
        self, placed: Sequence[BucketedSample], settings: DenoiserSettings, autoencoder_hash: str
    ) -> None:
        self.placed, self.inputs, self.seed = placed, find_task(settings.task).inputs, settings.seed
        self.images = [MAIN_INPUT, *(image for image in self.inputs.images if image.encoded)]
        self.keys = [
            variant_keys(placed, autoencoder_hash, settings.data.flip, image) for image in self.images
        ]
        count = settings.cache.mask_variants if drawn_name(settings) else 0
        self.drawn = [
            drawn_keys(placed, self.keys[0], self.inputs, settings.seed, variant) for variant in range(count)
        ]

    def items(self) -> list[CacheItem]:
        """Every variant of these images of every sample."""
        pairs = zip(self.images, self.keys, strict=True)
        plain = [item for image, own in pairs for item in cache_items(self.placed, own, image)]
        return plain + list(drawn_items(self.placed, self.drawn, self.inputs, self.seed))


@contextmanager
def at_work(device: torch.device, encoder: nn.Module) -> Iterator[None]:
    """Inside the block an encoder is on the device, computing in float32; afterwards it is back where it was.

    A loader process has no access to CUDA, and encodes on the CPU.
    """
    device = torch.device("cpu") if get_worker_info() is not None else device
    with frozen_encoder(device), lent(encoder, device):
        yield


def encode_images_on(device: torch.device, autoencoder: KLAutoencoder, pixel_values: Tensor) -> Tensor:
    """`encode_images` on a device that the autoencoder may have left since."""
    with at_work(device, autoencoder):
        return encode_images(autoencoder, pixel_values)


@torch.no_grad()
def encode_images(autoencoder: KLAutoencoder, pixel_values: Tensor) -> Tensor:
    """[B, 3, H, W] -> moments [B, 2C, h, w]."""
    return autoencoder.encode(pixel_values.to(next(autoencoder.parameters()).device))


def latent_samples(
    settings: DenoiserSettings,
    autoencoder: KLAutoencoder,
    placed: Sequence[BucketedSample],
    readers: ImageReaders,
    inputs: TaskInputs = NO_INPUTS,
    tells_sizes: bool = False,
) -> LatentSamples:
    """Samples as `DenoiserLoss` takes them, whose images `readers` reads.

    Args:
        inputs: of the run's task, as it is configured.
        tells_sizes: whether the denoiser is told sizes.
    """
    objective = settings.objective
    return LatentSamples(
        placed,
        readers.main,
        readers.kind,
        settings.seed,
        settings.captions,
        latent_channels=autoencoder.num_channels,
        downscale=autoencoder.pixels_per_latent,
        flip=settings.data.flip,
        masked=any(one.sample.loss_mask is not None for one in placed),
        extra_noise=bool(objective.offset_noise or objective.input_perturbation),
        images=readers.inputs,
        draw=inputs.draw,
        derive=inputs.derive,
        num_variants=settings.cache.mask_variants,
        drawn=readers.drawn,
        tells_sizes=tells_sizes,
    )


def cached_prompts(
    run: Run,
    placed: Sequence[BucketedSample],
    text_encoder: ClipTextEncoder,
    settings: DenoiserSettings,
) -> EmbedPrompts | None:
    """The outputs of the frozen text encoder for every caption that can occur, from the cache.

    None if the text encoder is trained, the cache is off, or there are too many captions to list. The text encoder then
    runs in each step and stays on the device; otherwise it leaves it.
    """
    texts = cached_texts(placed, settings)
    if texts is None:
        text_encoder.to(run.device)
        return None
    num_chunks = settings.prompt_chunks
    cache = PromptCache(settings.cache.root(), text_encoder_hash(text_encoder, num_chunks))
    encode_prompts = partial(encode_captions_on, run.device, text_encoder, num_chunks)
    with (
        lent(text_encoder, run.device),
        run.progress("encoding captions", "caption", len(texts)) as on_progress,
    ):
        cache.fill(
            texts,
            encode_prompts,
            rank=run.processes.rank,
            num_processes=run.processes.num_processes,
            barrier=run.processes.barrier,
            on_progress=on_progress,
        )
    cache.encode_again_from(texts, encode_prompts)
    return cache.read


def cached_texts(placed: Sequence[BucketedSample], settings: DenoiserSettings) -> set[str] | None:
    """Every caption that can occur in training or validation; None if the text encoder runs in each step."""
    lists = [possible_captions(one.sample, settings.captions) for one in placed]
    if settings.trains_text_encoder or not settings.cache.enabled or any(one is None for one in lists):
        return None
    texts = {text for one in lists for text in one or ()}
    if settings.distill is not None:  # the teacher's guidance needs it
        texts.add("")
    if settings.validation.every:  # it drops no caption, while training with dropout 1 has only ""
        texts |= {plain_caption(one.sample, settings.captions) for one in placed}
    return texts


def encode_captions_on(
    device: torch.device, text_encoder: ClipTextEncoder, num_chunks: int, captions: list[str]
) -> Conditioning:
    """`encode_captions` on a device that the text encoder may have left since."""
    with at_work(device, text_encoder):
        return encode_captions(text_encoder, num_chunks, captions)


@torch.no_grad()
def encode_captions(text_encoder: ClipTextEncoder, num_chunks: int, captions: list[str]) -> Conditioning:
    """The embeddings of captions by a frozen text encoder, each padded or cut to `num_chunks` chunks."""
    embeds: Conditioning = text_encoder(captions, num_chunks=num_chunks)
    return embeds


def text_encoder_hash(text_encoder: ClipTextEncoder, num_chunks: int) -> str:
    """A hash of all that determines a caption's embedding: every network and tokenizer, context, number of chunks.

    With one network and one tokenizer, caches of older versions have the same.
    """
    components = text_encoder.components()
    networks = {name: one for name, one in components.items() if isinstance(one, nn.Module)}
    hashes = [tensors_hash(network) for network in networks.values()]
    words = [_words(one) for name, one in components.items() if name not in networks]
    names = [] if len(networks) == 1 else [type(text_encoder).__qualname__, *components]
    options = [(each.hidden_layer, each.zeros_for_empty) for each in text_encoder.encoders]
    names += [str(each) for each in options if each != (None, False)]
    return combined_hash(*hashes, *words, *names, text_encoder.context_length, num_chunks)


def _words(tokenizer: Any) -> str:
    """What a tokenizer makes of texts."""
    return str(tokenizer.backend_tokenizer.to_str()) + str(tokenizer.pad_token)
