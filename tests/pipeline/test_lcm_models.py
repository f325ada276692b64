"""Distilled models as others publish them: a folder for diffusers' `LatentConsistencyModelPipeline`."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import LatentConsistencyModelPipeline

from ldm.diffusion.schedulers import few_step_config
from ldm.models.fresh import add_guidance_embedding
from ldm.models.loading.model import save_parts
from ldm.noise import image_generators
from ldm.pipeline.pipeline import load_pipeline
from tests.support.tiny_models import make_sd1


def test_a_published_model_gives_the_same_images(tmp_path: Path) -> None:
    """The same scale, which the UNet is told; both pipelines subtract 1."""
    parts = make_sd1(tmp_path)
    add_guidance_embedding(parts.denoiser.unet, 32)
    torch.nn.init.normal_(parts.denoiser.unet.time_embedding.cond_proj.weight)
    parts.scheduler_config = few_step_config(parts.scheduler_config, 50)
    model = tmp_path / "model"
    save_parts(parts, model)
    (model / "ldm.json").unlink()
    index = json.loads((model / "model_index.json").read_text())
    index["_class_name"] = "LatentConsistencyModelPipeline"
    (model / "model_index.json").write_text(json.dumps(index))

    stock = LatentConsistencyModelPipeline.from_pretrained(model, safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    few = {"num_inference_steps": 4, "guidance_scale": 8.5, "height": 16, "width": 16}
    prompts = ["a red apple", "a small green circle"]
    theirs = stock(prompts, generator=image_generators([3, 4]), **few).images
    ours = load_pipeline(model).generate(prompts, seeds=[3, 4], **few).images
    alone = load_pipeline(model).generate(prompts[1], seeds=[4], **few).images
    pairs = [*zip(ours, theirs, strict=True), (alone[0], ours[1])]
    for one, other in pairs:
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1
