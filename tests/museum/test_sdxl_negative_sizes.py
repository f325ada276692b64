"""diffusers' SDXL pipeline gives images of a batch the sizes of the wrong rows, once the negative prompt has its own.

`StableDiffusionXLPipeline` joins the time ids as [negative, positive] and repeats the pair for every image, so that
with three images the rows are negative, positive, negative, positive, ... The embeddings are three negative rows
and then three positive ones.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline

from ldm.pipeline.pipeline import Pipeline
from tests.support.tiny_images import largest, stock_scheduler
from tests.support.tiny_models import make_sdxl

PROMPTS = ["a red apple", "a blue square", "a small green circle"]
LATENTS = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_theirs_differ_in_a_batch_and_ours_do_not(tmp_path: Path) -> None:
    parts = make_sdxl(tmp_path)
    ours, common = Pipeline(parts), {"num_inference_steps": 2, "guidance_scale": 5.0}

    def our_images(prompts: list[str], latents: torch.Tensor) -> list[Any]:
        sizes: dict[str, Any] = {"negative_original_size": (1, 2), "negative_target_size": (3000, 1)}
        settings: dict[str, Any] = {"latents": latents, "scheduler": "euler", **common, **sizes}
        return ours.generate(prompts, **settings).images

    stock = StableDiffusionXLPipeline(
        **parts.components(),
        scheduler=stock_scheduler("euler", parts.scheduler_config),
        add_watermarker=False,
    )
    stock.set_progress_bar_config(disable=True)

    def their_images(prompts: list[str], latents: torch.Tensor) -> list[Any]:
        sizes: dict[str, Any] = {"negative_original_size": (1, 2), "negative_target_size": (3000, 1)}
        size = {"height": 16, "width": 16}
        images: list[Any] = stock(prompts, latents=latents, **size, **common, **sizes).images
        return images

    rows = [(PROMPTS[i : i + 1], LATENTS[i : i + 1]) for i in range(3)]
    alone = [our_images(*row)[0] for row in rows]
    assert largest(alone, [their_images(*row)[0] for row in rows]) <= 1
    assert largest(alone, our_images(PROMPTS, LATENTS)) <= 1
    assert largest(alone, their_images(PROMPTS, LATENTS)) > 1, (
        "fixed in diffusers: move this to the parity tests"
    )
