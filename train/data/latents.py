"""What the denoiser is trained on: latents and captions, from the cache or encoded as they come."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

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

from ..run.run import Run

if TYPE_CHECKING:
    from ..settings.denoiser import DenoiserSettings

VariantKeys = list[dict[tuple[int, bool], str]]
"""For each sample the cache key of each (crop, flip) that it can be shown with."""


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
    """Every variant of every sample as the cache wants them: those of one size together."""
    return [
        CacheItem(key, partial(one.pixels, *variant))
        for one, variants in sorted(zip(placed, keys, strict=True), key=lambda pair: pair[0].size)
        for variant, key in variants.items()
    ]


def image_reader(
    run: Run, placed: Sequence[BucketedSample], autoencoder: KLAutoencoder, settings: CacheSettings
) -> tuple[str, ReadImage]:
    """What a batch holds of the images, "moments" or "pixel_values", and how to read it.

    With the cache, what it lacks is encoded first, by all processes in shares; the autoencoder then leaves the device.
    """
    autoencoder.to(run.device)
    if not settings.enabled:
        return "pixel_values", read_pixels(placed)
    autoencoder_hash = tensors_hash(autoencoder.vae)
    cache = MomentsCache(settings.root(), autoencoder_hash)
    keys = variant_keys(placed, autoencoder_hash, run.settings.data.flip)
    wanted = cache_items(placed, keys)
    with run.progress("encoding images", "image", len(wanted)) as on_progress:
        cache.fill(wanted, partial(encode_images, autoencoder), on_progress=on_progress, **run.shares())
    autoencoder.to("cpu")
    return "moments", partial(_read_moments, cache, keys)


def _read_moments(cache: MomentsCache, keys: VariantKeys, index: int, crop: int, flip: bool) -> Tensor:
    """A function of the module and not a lambda, so that the dataset can travel to a loader process."""
    return cache.read(keys[index][crop, flip])


@torch.no_grad()
def encode_images(autoencoder: KLAutoencoder, pixel_values: Tensor) -> Tensor:
    """[B, 3, H, W] -> moments [B, 2C, h, w]."""
    return autoencoder.encode(pixel_values.to(next(autoencoder.parameters()).device))


def latent_samples(
    settings: "DenoiserSettings",
    autoencoder: KLAutoencoder,
    placed: Sequence[BucketedSample],
    images: tuple[str, ReadImage],
    first: int = 0,
) -> LatentSamples:
    """Samples as `DenoiserLoss` wants them.

    Args:
        images: what a batch holds of them, and how it is read.
        first: the number that the reader has for the first of `placed`.
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


EmbedPrompts = Callable[[list[str]], Conditioning]


def cached_prompts(
    run: Run,
    placed: Sequence[BucketedSample],
    text_encoder: ClipTextEncoder,
    settings: "DenoiserSettings",
) -> EmbedPrompts | None:
    """The frozen text encoder's answers to every caption that can come, from the cache.

    None where it is trained, where there is no cache, or where the captions are too many to list: it is then asked at
    each step, and stays on the device.
    """
    text_encoder.to(run.device)
    texts = cached_texts(placed, settings)
    if texts is None:
        return None
    num_chunks = settings.prompt_chunks
    cache = PromptCache(settings.cache.root(), text_encoder_hash(text_encoder, num_chunks))
    encode_prompts = partial(encode_captions, text_encoder, num_chunks)
    with run.progress("encoding captions", "caption", len(texts)) as on_progress:
        cache.fill(texts, encode_prompts, on_progress=on_progress, **run.shares())
    text_encoder.to("cpu")
    return cache.read


def cached_texts(placed: Sequence[BucketedSample], settings: "DenoiserSettings") -> set[str] | None:
    """Every caption that can come, in training or in validation; None where the text encoder is asked at each step."""
    lists = [possible_captions(one.sample, settings.captions) for one in placed]
    if settings.trains_text_encoder or not settings.cache.enabled or any(one is None for one in lists):
        return None
    texts = {text for one in lists for text in one or ()}
    if settings.validation.every:  # which drops no caption, while training with dropout 1 has none but ""
        texts |= {plain_caption(one.sample, settings.captions) for one in placed}
    return texts


@torch.no_grad()
def encode_captions(text_encoder: ClipTextEncoder, num_chunks: int, captions: list[str]) -> Conditioning:
    """What a frozen text encoder says of captions, each in so many chunks."""
    embeds: Conditioning = text_encoder(captions, num_chunks=num_chunks)
    return embeds


def text_encoder_hash(text_encoder: ClipTextEncoder, num_chunks: int) -> str:
    """What decides a caption's embedding: the network, its tokenizer, its context, the number of chunks."""
    tokenizer: Any = text_encoder.tokenizer
    words = tokenizer.backend_tokenizer.to_str() + str(tokenizer.pad_token)
    return combined_hash(tensors_hash(text_encoder.model), words, text_encoder.context_length, num_chunks)
