"""Latents and prompt embeddings for the denoiser, from the cache or encoded in each step."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ldm.data.batches import LatentSamples, ReadImage, read_pixels
from ldm.data.cache.cache_folder import CacheSettings
from ldm.data.cache.keys import combined_hash, entry_key, tensors_hash
from ldm.data.cache.moments import CacheItem, MomentsCache
from ldm.data.cache.prompt_cache import PromptCache
from ldm.data.captions import flip_allowed, plain_caption, possible_captions
from ldm.data.prepare import BucketedSample
from ldm.models.clip import ClipTextEncoder
from ldm.models.vae import KLAutoencoder
from ldm.types import Conditioning

from ..loop.denoiser_loss import EmbedPrompts
from ..run.run import Run
from ..settings.denoiser import DenoiserSettings

VariantKeys = list[dict[tuple[int, bool], str]]
"""For each sample the cache key of each (crop, flip) that may be drawn."""


def variant_keys(placed: Sequence[BucketedSample], autoencoder_hash: str, flip: bool) -> VariantKeys:
    """The cache keys of all variants of all samples."""
    return [
        {
            (crop, flipped): entry_key(
                one.facts.content_hash, one.variant_key(crop, flipped), autoencoder_hash
            )
            for crop in range(len(one.placement.crops))
            for flipped in ((False, True) if flip and flip_allowed(one.sample) else (False,))
        }
        for one in placed
    ]


def cache_items(placed: Sequence[BucketedSample], keys: VariantKeys) -> list[CacheItem]:
    """Every variant of every sample for the cache, grouped by size."""
    return [
        CacheItem(key, partial(one.pixels, *variant))
        for one, variants in sorted(zip(placed, keys, strict=True), key=lambda pair: pair[0].size)
        for variant, key in variants.items()
    ]


def image_reader(
    run: Run, placed: Sequence[BucketedSample], autoencoder: KLAutoencoder, settings: CacheSettings
) -> tuple[str, ReadImage]:
    """What a batch has of the images, "moments" or "pixel_values", and a function that reads it.

    With the cache, all processes first encode what is missing; then the autoencoder leaves the device.
    """
    autoencoder.to(run.device)
    if not settings.enabled:
        return "pixel_values", read_pixels(placed)
    autoencoder_hash = tensors_hash(autoencoder.vae)
    cache = MomentsCache(settings.root(), autoencoder_hash)
    keys = variant_keys(placed, autoencoder_hash, run.settings.data.flip)
    wanted = cache_items(placed, keys)
    with run.progress("encoding images", "image", len(wanted)) as on_progress:
        cache.fill(
            wanted, partial(encode_images, autoencoder), on_progress=on_progress, **vars(run.processes)
        )
    autoencoder.to("cpu")
    return "moments", partial(_read_moments, cache, keys)


def _read_moments(cache: MomentsCache, keys: VariantKeys, index: int, crop: int, flip: bool) -> Tensor:
    """Not a lambda, so that the dataset can be pickled for a loader process."""
    return cache.read(keys[index][crop, flip])


@torch.no_grad()
def encode_images(autoencoder: KLAutoencoder, pixel_values: Tensor) -> Tensor:
    """[B, 3, H, W] -> moments [B, 2C, h, w]."""
    return autoencoder.encode(pixel_values.to(next(autoencoder.parameters()).device))


def latent_samples(
    settings: DenoiserSettings,
    autoencoder: KLAutoencoder,
    placed: Sequence[BucketedSample],
    images: tuple[str, ReadImage],
    first: int = 0,
) -> LatentSamples:
    """Samples as `DenoiserLoss` takes them.

    Args:
        images: what a batch has of the images, and a function that reads it.
        first: the reader's index of the first of `placed`.
    """
    kind, read = images
    objective = settings.objective
    return LatentSamples(
        placed,
        partial(_read_from, read, first),
        kind,
        settings.seed,
        settings.captions,
        latent_channels=autoencoder.num_channels,
        downscale=autoencoder.pixels_per_latent,
        flip=settings.data.flip,
        masked=any(one.sample.loss_mask is not None for one in placed),
        extra_noise=bool(objective.offset_noise or objective.input_perturbation),
    )


def _read_from(read: ReadImage, first: int, index: int, crop: int, flip: bool) -> Tensor:
    return read(first + index, crop, flip)


def cached_prompts(
    run: Run,
    placed: Sequence[BucketedSample],
    text_encoder: ClipTextEncoder,
    settings: DenoiserSettings,
) -> EmbedPrompts | None:
    """The outputs of the frozen text encoder for every caption that can occur, from the cache.

    None if the text encoder is trained, the cache is off, or there are too many captions to list. The text encoder then
    runs in each step and stays on the device.
    """
    text_encoder.to(run.device)
    texts = cached_texts(placed, settings)
    if texts is None:
        return None
    num_chunks = settings.prompt_chunks
    cache = PromptCache(settings.cache.root(), text_encoder_hash(text_encoder, num_chunks))
    encode_prompts = partial(encode_captions, text_encoder, num_chunks)
    with run.progress("encoding captions", "caption", len(texts)) as on_progress:
        cache.fill(texts, encode_prompts, on_progress=on_progress, **vars(run.processes))
    text_encoder.to("cpu")
    return cache.read


def cached_texts(placed: Sequence[BucketedSample], settings: DenoiserSettings) -> set[str] | None:
    """Every caption that can occur in training or validation; None if the text encoder runs in each step."""
    lists = [possible_captions(one.sample, settings.captions) for one in placed]
    if settings.trains_text_encoder or not settings.cache.enabled or any(one is None for one in lists):
        return None
    texts = {text for one in lists for text in one or ()}
    if settings.validation.every:  # it drops no caption, while training with dropout 1 has only ""
        texts |= {plain_caption(one.sample, settings.captions) for one in placed}
    return texts


@torch.no_grad()
def encode_captions(text_encoder: ClipTextEncoder, num_chunks: int, captions: list[str]) -> Conditioning:
    """The embeddings of captions by a frozen text encoder, each padded or cut to `num_chunks` chunks."""
    embeds: Conditioning = text_encoder(captions, num_chunks=num_chunks)
    return embeds


def text_encoder_hash(text_encoder: ClipTextEncoder, num_chunks: int) -> str:
    """A hash of all that determines a caption's embedding: network, tokenizer, context, number of chunks."""
    tokenizer: Any = text_encoder.tokenizer
    words = tokenizer.backend_tokenizer.to_str() + str(tokenizer.pad_token)
    return combined_hash(tensors_hash(text_encoder.model), words, text_encoder.context_length, num_chunks)
