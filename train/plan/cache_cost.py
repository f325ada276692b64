"""What the cache lacks, and what filling it costs, measured on a few images and captions. Nothing is written."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.data.batches import read_pixels
from ldm.data.cache.keys import prompt_key, tensors_hash
from ldm.data.cache.moments import MomentsCache
from ldm.data.cache.prompt_cache import PromptCache
from ldm.data.cache.shards import Shard, ShardFault, ShardStore
from ldm.data.prepare import BucketedSample

from ..data.latents import (
    CachedEntries,
    ImageReaders,
    cached_texts,
    drawn_name,
    encode_captions,
    encode_images,
    encodes_in_training,
    pixel_readers,
    text_encoder_hash,
)
from ..loop.denoiser_loss import DenoiserLoss, EmbedPrompts
from ..run.run import Run
from ..settings.denoiser import DenoiserSettings
from .step_cost import settle

NUM_ENCODED = 8
"""Images and captions that are encoded to measure the time for one: the batch size for images in the cache."""


@dataclass(frozen=True)
class CacheCost:
    """What the cache lacks of one kind of entry, and what filling it costs.

    Attributes:
        num_bytes: of the missing entries, on the disk.
        each_sec: seconds per entry, in one process.
    """

    num_wanted: int = 0
    num_lacking: int = 0
    num_bytes: int = 0
    each_sec: float = 0.0


def entries_there(store: ShardStore) -> set[str]:
    """The keys in a store's shards, which are neither verified nor moved."""
    keys: set[str] = set()
    for path in store.folder.glob(f"{store.kind}-*.safetensors"):
        with suppress(ShardFault, OSError):
            keys |= Shard.open(path, store.kind, store.model_hash).checksums.keys()
    return keys


def plan_images(
    run: Run, settings: DenoiserSettings, loss: DenoiserLoss, placed: Sequence[BucketedSample]
) -> tuple[CacheCost, ImageReaders]:
    """What the cache lacks of the images, and readers that give moments that are all zero in their place.

    Without a cache the images themselves are read, and encoded in each step.
    """
    autoencoder = loss.parts.autoencoder.to(run.device)
    inputs = pixel_readers(placed, settings)
    if not settings.cache.enabled:
        return CacheCost(), ImageReaders("pixel_values", read_pixels(placed), inputs)
    autoencoder_hash = tensors_hash(autoencoder.vae)
    there = entries_there(MomentsCache(settings.cache.root(), autoencoder_hash).store)
    entries = CachedEntries(placed, settings, autoencoder_hash)
    owners = {
        key: one
        for own in (*entries.keys, *entries.drawn)
        for one, keys in zip(placed, own, strict=True)
        for key in keys.values()
    }
    wanted = {item.key: (owners[item.key], item.load) for item in entries.items()}
    lacking = [entry for key, entry in wanted.items() if key not in there]
    some = [load for one, load in lacking if one.size == lacking[0][0].size][:NUM_ENCODED]

    def encode(number: int) -> None:
        with ThreadPoolExecutor(4) as pool:  # like the cache
            pixels = list(pool.map(lambda load: load(), some[:number]))
        encode_images(autoencoder, torch.stack(pixels))

    seconds = _seconds_each(run.device, encode, len(some))
    if not encodes_in_training(settings):
        autoencoder.to("cpu")
    num_bytes = sum(4 * torch.Size(_moments_shape(one, loss)).numel() for one, _ in lacking)
    cost = CacheCost(len(wanted), len(lacking), num_bytes, seconds)

    def zeros(index: int, crop: int, flip: bool) -> Tensor:
        return torch.zeros(_moments_shape(placed[index], loss))

    cached = {image.key: zeros for image in entries.images[1:]}
    name = drawn_name(settings)
    drawn = {name: [zeros] * settings.cache.mask_variants} if name else {}
    return cost, ImageReaders("moments", zeros, inputs | cached, drawn)


def _moments_shape(one: BucketedSample, loss: DenoiserLoss) -> tuple[int, int, int]:
    """[2C, h, w]."""
    autoencoder = loss.parts.autoencoder
    channels, height, width = one.latent_shape(autoencoder.num_channels, autoencoder.pixels_per_latent)
    return 2 * channels, height, width


def plan_captions(
    run: Run, settings: DenoiserSettings, loss: DenoiserLoss, placed: Sequence[BucketedSample]
) -> tuple[CacheCost, EmbedPrompts | None]:
    """What the cache lacks of the captions, and what replaces their embeddings: those of the empty caption.

    None if the text encoder runs in each step; it then stays on the device.
    """
    text_encoder = loss.parts.text_encoder.to(run.device)
    texts = cached_texts(placed, settings)
    if texts is None:
        return CacheCost(), None
    num_chunks, texts = settings.prompt_chunks, {"", *texts}
    own_hash = text_encoder_hash(text_encoder, num_chunks)
    there = entries_there(PromptCache(settings.cache.root(), own_hash).store)
    lacking = sorted(text for text in texts if prompt_key(text, own_hash) not in there)
    some = lacking[:NUM_ENCODED]
    seconds = _seconds_each(
        run.device, lambda number: encode_captions(text_encoder, num_chunks, some[:number]), len(some)
    )
    empty = encode_captions(text_encoder, num_chunks, [""]).map(Tensor.cpu)
    text_encoder.to("cpu")
    parts = (empty.prompt_embeds, empty.pooled, empty.attention_mask)
    num_bytes = len(lacking) * sum(part.nbytes for part in parts if part is not None)
    cost = CacheCost(len(texts), len(lacking), num_bytes, seconds)
    return cost, lambda captions: empty.select([0] * len(captions))


def _seconds_each(device: torch.device, encode: Callable[[int], object], number: int) -> float:
    """Seconds per item when `number` are encoded at once, after a first one alone; 0 if there is none."""
    if not number:
        return 0.0
    encode(1)  # the first call prepares kernels
    settle(device)
    begin = time.perf_counter()
    encode(number)
    settle(device)
    return (time.perf_counter() - begin) / number
