"""Models of known shapes with random weights, and random data, for the benchmarks."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm.diffusion.path import DDPMPath, ScheduleSettings
from ldm.models.clip import ClipTextEncoder
from ldm.models.clip_vocabulary import learn_merges, write_tokenizer
from ldm.models.loading.folder import Defaults
from ldm.models.parts import ModelParts
from ldm.models.unet import UNetDenoiser
from ldm.models.vae import KLAutoencoder
from ldm.pipeline.pipeline import Pipeline

CAPTIONS = ["a red apple on a table", "the large blue square above a small green circle"]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model's networks.

    Attributes:
        attends: which levels of the UNet attend to the prompt.
        heads: attention heads of the UNet.
        text_layers: layers of the text encoder, whose heads have 64 channels.
    """

    unet_channels: tuple[int, ...]
    attends: tuple[bool, ...]
    layers_per_block: int
    heads: int | tuple[int, ...]
    vae_channels: tuple[int, ...]
    text_width: int
    text_layers: int
    num_groups: int = 32


FULL_VAE, NARROW_VAE = (128, 256, 512, 512), (32, 32, 32, 32)

SD15 = Shape((320, 640, 1280, 1280), (True, True, True, False), 2, 8, FULL_VAE, 768, 12)
"""Stable Diffusion 1.5: a UNet with 860 million weights, CLIP-L, and the autoencoder."""

MEDIUM = Shape((128, 256, 384), (True, True, False), 1, 8, FULL_VAE, 768, 12)
"""A UNet with 36 million weights, with Stable Diffusion 1.5's text encoder and autoencoder."""

SMALLEST = Shape((32, 64), (True, False), 1, 2, (32, 32, 32, 32), 64, 1)
"""Only shows that a benchmark runs."""


def make_model(folder: Path, shape: Shape, size_px: int) -> Path:
    """Write a model with random weights, the same each time, in diffusers' layout; returns the folder.

    The weights are stored in float16, to halve the size, and read in float32 by all sides.
    """
    torch.manual_seed(0)
    write_tokenizer(folder / "made", learn_merges(CAPTIONS, 30), 77)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "made", pad_token="<|endoftext|>")
    text_model = CLIPTextModel(_text_config(shape, tokenizer))
    defaults = Defaults(height=size_px, width=size_px, num_inference_steps=20)
    parts = ModelParts(
        UNetDenoiser(make_unet(shape, size_px)),
        KLAutoencoder(_vae(shape)),
        ClipTextEncoder(tokenizer, text_model),
        DDPMPath(ScheduleSettings()).scheduler_config(),
        defaults,
    )
    Pipeline(parts).save(folder / "model", dtype=torch.float16)
    return folder / "model"


def make_unet(shape: Shape, size_px: int) -> UNet2DConditionModel:
    """The UNet alone, with random weights."""
    return UNet2DConditionModel(
        sample_size=size_px // 8,
        block_out_channels=shape.unet_channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if x else "DownBlock2D" for x in shape.attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if x else "UpBlock2D" for x in reversed(shape.attends)),
        layers_per_block=shape.layers_per_block,
        attention_head_dim=shape.heads,  # diffusers reads it as the number of heads
        cross_attention_dim=shape.text_width,
        norm_num_groups=shape.num_groups,
    )


@cache
def call_flops(shape: Shape, size_px: int, num_rows: int = 2) -> int:
    """Floating-point operations of a forward pass of the UNet; a multiply-add counts as two.

    Matrix multiplications, convolutions and attention, counted on the meta device without computing them.
    """
    side = size_px // 8
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        text = torch.empty(num_rows, 77, shape.text_width)
        make_unet(shape, size_px)(torch.empty(num_rows, 4, side, side), torch.empty(num_rows), text)
    return int(counter.get_total_flops())


@cache
def num_weights(shape: Shape, size_px: int) -> int:
    """Number of weights of the UNet, counted without allocating them."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in make_unet(shape, size_px).parameters())


def _vae(shape: Shape) -> AutoencoderKL:
    levels = len(shape.vae_channels)
    return AutoencoderKL(
        block_out_channels=shape.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        latent_channels=4,
    )


def _text_config(shape: Shape, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.text_width,
        intermediate_size=4 * shape.text_width,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.text_width // 64,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def make_dataset(folder: Path, num_images: int, size_px: int) -> Path:
    """Write a folder of random images with captions, the same each time, which diffusers' script and ours read."""
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(0)
    lines = []
    for number in range(num_images):
        coarse = drawn.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        name = f"{number:03d}.png"
        Image.fromarray(coarse).resize((size_px, size_px), Image.Resampling.BICUBIC).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": CAPTIONS[number % len(CAPTIONS)]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
