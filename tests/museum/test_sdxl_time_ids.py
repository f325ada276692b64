"""diffusers' SDXL pipelines round sizes to the model's number format, and two of them ignore the negative crop.

In bfloat16, which has 8 significant bits, a size of 1025 becomes 1024, and 2047 becomes 2048. The pipelines for
image-to-image and inpainting compute the negative time ids of a base model with the crop of the prompt, whatever
`negative_crops_coords_top_left` is.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from ldm.models.generation_settings import GenerationSettings
from ldm.models.parts import ModelParts
from ldm.models.unet import added_conditions
from ldm.pipeline.told_sizes import told_sizes
from tests.support.tiny_models import make_sdxl

SIZES: dict[str, Any] = {"height": 16, "width": 16, "original_size": (1025, 2047), "negative_crop": (3, 5)}


def ours(parts: ModelParts, dtype: torch.dtype) -> list[list[float]]:
    """The time ids that our UNet gets beside the prompt and beside the negative prompt."""
    rows = []
    for sizes in told_sizes(GenerationSettings(**SIZES)):
        conditioning = parts.with_sizes(parts.text_encoder(["a"]), [sizes])
        added = added_conditions(conditioning, dtype)
        assert added is not None
        rows.append(added["time_ids"][0].tolist())
    return rows


def theirs(parts: ModelParts, kind: Any, dtype: torch.dtype) -> list[list[float]]:
    """The time ids that a stock pipeline makes, by the function of its own that it calls for them."""
    made = kind(**parts.components(), scheduler=None, add_watermarker=False)
    common = {"original_size": (1025, 2047), "crops_coords_top_left": (0, 0), "target_size": (16, 16)}
    more = {"text_encoder_projection_dim": 20, "dtype": dtype}
    if kind is StableDiffusionXLPipeline:
        return made._get_add_time_ids(**common, **more).tolist()  # type: ignore[no-any-return]
    negative = {
        "negative_original_size": (1025, 2047),
        "negative_crops_coords_top_left": (3, 5),
        "negative_target_size": (16, 16),
        "aesthetic_score": 6.0,
        "negative_aesthetic_score": 2.5,
    }
    return [each[0].tolist() for each in made._get_add_time_ids(**common, **negative, **more)]


def test_sizes_are_rounded_there_and_exact_here(tmp_path: Path) -> None:
    parts = make_sdxl(tmp_path)
    assert ours(parts, torch.bfloat16)[0] == [1025, 2047, 0, 0, 16, 16]
    assert theirs(parts, StableDiffusionXLPipeline, torch.float32)[0] == [1025, 2047, 0, 0, 16, 16]
    assert theirs(parts, StableDiffusionXLPipeline, torch.bfloat16)[0] == [1024, 2048, 0, 0, 16, 16]


def test_the_negative_crop_is_ignored_there_and_used_here(tmp_path: Path) -> None:
    parts = make_sdxl(tmp_path)
    assert [row[2:4] for row in ours(parts, torch.float32)] == [[0, 0], [3, 5]]
    for kind in (StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline):
        assert [row[2:4] for row in theirs(parts, kind, torch.float32)] == [[0, 0], [0, 0]]
