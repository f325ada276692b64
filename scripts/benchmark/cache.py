"""The cost of the cache: bytes per sample, encoding rate, and its share of a training step of the 36M UNet.

A batch from the cache (reading moments and embeddings, the posterior's noise, collating, the posterior sample) and a
training step on it are timed alternately, in one process; samples disturbed by other programs do not count.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm import noise
from ldm.data.batches import collate
from ldm.data.cache.keys import entry_key
from ldm.data.cache.moments import CacheItem, MomentsCache
from ldm.data.cache.prompt_cache import PromptCache
from ldm.models.vae import KLAutoencoder
from ldm.types import Conditioning

from .rows import Row, result_of
from .samples import Sample, Scale, Setting, machine, num_clean, ratio_of, recorded, timed

GOAL = 1 / 0.03
"""Batches per time of a training step: a batch should cost under 3 % of a step."""


@dataclass(frozen=True)
class Size:
    """How large the networks and the data are."""

    size_px: int = 256
    unet_channels: tuple[int, ...] = (128, 256, 384)
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    num_tokens: int = 77
    text_width: int = 512
    num_images: int = 4
    num_entries: int = 256
    batch_size: int = 4
    batches_a_sample: int = 100


FULL = Size()
SMALLEST = Size(64, (32, 64, 64), (32, 32, 32, 32), 8, 32, 2, 16, 2, 2)
"""Only shows that the benchmark runs."""

SIZES: Mapping[Scale, Size] = {
    "full": FULL,
    "quick": Size(size_px=128, num_images=2, batch_size=2, batches_a_sample=20),
    "smallest": SMALLEST,
}


@dataclass(frozen=True)
class Parts:
    """Everything a training step needs."""

    autoencoder: KLAutoencoder
    unet: Any
    moments: MomentsCache
    prompts: PromptCache
    keys: list[str]
    texts: list[str]


def cache(setting: Setting) -> dict[str, Any]:
    """Fill a cache, then time batches from it and training steps alternately."""
    size = SIZES[setting.scale]
    with tempfile.TemporaryDirectory() as folder:
        autoencoder, unet = make_networks(size)
        encoded = encode_rate(Path(folder), autoencoder, size)
        parts = fill(Path(folder), autoencoder, unet, size)
        batch_bytes = sum(path.stat().st_size for path in Path(folder).rglob("moments-*"))
        optimizer = torch.optim.AdamW(unet.parameters(), fused=True)
        sides: dict[str, list[Sample]] = {"first batch": [], "batch": [], "step": []}
        for number in range(setting.rounds + 1):
            fresh = MomentsCache(Path(folder), "model"), PromptCache(Path(folder), "model")
            fresh_parts = Parts(autoencoder, unet, *fresh, parts.keys, parts.texts)
            num_first = size.num_entries // size.batch_size
            found = {
                "first batch": timed(num_first, partial(make_batch, fresh_parts, size)),
                "batch": timed(size.batches_a_sample, partial(make_batch, parts, size)),
                "step": timed(1, lambda n: train_step(parts, make_batch(parts, size, n), optimizer)),
            }
            for name, sample in found.items():
                sides[name] += [sample] if number else []  # the first round warms up
    title = f"batch {size.batch_size} from the cache, {size.size_px} px"
    return result_of(
        "cache",
        [compared(title, name, sides) for name in ("batch", "first batch")],
        moments_bytes_a_sample=batch_bytes / (size.num_entries + size.num_images),
        encode=encoded,
        size=asdict(size),
        parameters=sum(parameter.numel() for parameter in unet.parameters()),
        machine=machine(),
        samples={name: recorded(found) for name, found in sides.items()},
    )


def make_networks(size: Size) -> tuple[KLAutoencoder, Any]:
    """A KL autoencoder of Stable Diffusion's structure and the UNet, with random weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    levels = len(size.vae_channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=size.vae_channels,
        layers_per_block=2,
        latent_channels=4,
    )
    unet = UNet2DConditionModel(
        sample_size=size.size_px // 8,
        block_out_channels=size.unet_channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=size.text_width,
    )
    return KLAutoencoder(vae.eval().requires_grad_(False)), unet.train()


def encode_rate(folder: Path, autoencoder: KLAutoencoder, size: Size) -> dict[str, Any]:
    """Images per second, from pixels to a shard on the disk."""
    shape = (3, size.size_px, size.size_px)
    items = [
        CacheItem(entry_key(str(n), "encode", "model"), partial(pseudo_image, n, shape))
        for n in range(size.num_images)
    ]
    moments = MomentsCache(folder, "model")
    sample = timed(1, lambda _: moments.fill(items, autoencoder.encode, batch_size=size.batch_size))
    return {"images_per_sec": size.num_images / sample.wall_sec, "clean": sample.clean, "px": size.size_px}


def pseudo_image(number: int, shape: Sequence[int]) -> Tensor:
    return torch.rand(*shape, generator=noise.generator_for("image", number)) * 2 - 1


def fill(folder: Path, autoencoder: KLAutoencoder, unet: Any, size: Size) -> Parts:
    """A cache of `num_entries` random moments and captions."""
    keys = [entry_key(str(n), "read", "model") for n in range(size.num_entries)]
    texts = [f"caption {n}" for n in range(size.num_entries)]
    moments, prompts = MomentsCache(folder, "model"), PromptCache(folder, "model")
    side = size.size_px // 8
    moments.fill([CacheItem(key, lambda: torch.randn(8, side, side)) for key in keys], lambda x: x)
    width = (size.num_tokens, size.text_width)
    prompts.fill(
        texts, lambda batch: Conditioning(torch.randn(len(batch), *width), torch.randn(len(batch), width[1]))
    )
    return Parts(autoencoder, unet, moments, prompts, keys, texts)


def make_batch(parts: Parts, size: Size, number: int) -> dict[str, Any]:
    """A batch as in training: moments, embeddings and the posterior's noise, collated; then the posterior sample."""
    chosen = [(number * size.batch_size + row) % len(parts.keys) for row in range(size.batch_size)]
    shape = (4, size.size_px // 8, size.size_px // 8)
    rows = [
        {
            "moments": parts.moments.read(parts.keys[n]),
            "posterior_noise": torch.randn(shape, generator=noise.generator_for(0, 0, str(n), "posterior")),
        }
        for n in chosen
    ]
    batch = collate(rows)
    batch["latents"] = parts.autoencoder.sample_posterior(batch["moments"], batch["posterior_noise"])
    batch["prompt_embeds"] = parts.prompts.read([parts.texts[n] for n in chosen]).prompt_embeds
    return batch


def train_step(parts: Parts, batch: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Noise, forward, backward, AdamW."""
    timesteps = torch.randint(0, 1000, (len(batch["latents"]),))
    target = torch.randn_like(batch["latents"])
    output = parts.unet(batch["latents"] + target, timesteps, batch["prompt_embeds"], return_dict=False)[0]
    loss: Any = torch.nn.functional.mse_loss(output, target)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def compared(case: str, name: str, sides: Mapping[str, Sequence[Sample]]) -> Row:
    """How many such batches are read in the time of a training step, which includes its own batch."""
    ours, theirs = sides[name], sides["step"]
    clean = num_clean(ours), num_clean(theirs)
    return Row(case, name, "training step", ratio_of(ours, theirs), GOAL, clean, len(ours))
