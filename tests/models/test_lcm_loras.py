"""LoRAs as those published for LCM: their layers, in both namings, sampled with `lcm` as in a stock pipeline."""

from pathlib import Path

import numpy as np
import pytest
from diffusers import LCMScheduler, StableDiffusionPipeline

from ldm.models.adapters.lora import LoraSettings
from ldm.models.loading.model import save_parts
from ldm.noise import image_generators
from ldm.pipeline.pipeline import load_pipeline
from tests.support.slow_cases import rest_slow
from tests.support.tiny_loras import FORMATS, trained
from tests.support.tiny_models import make_sd1

LAYERS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
"""What latent-consistency/lcm-lora-sdv1-5 changes."""


@pytest.mark.parametrize("format", rest_slow(["diffusers", "kohya"], "kohya"))
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_published_loras_are_sampled_as_in_diffusers(tmp_path: Path, format: str) -> None:
    save_parts(make_sd1(tmp_path), tmp_path / "base")
    file = FORMATS[format](
        trained(make_sd1(tmp_path), LoraSettings(rank=2, target_modules=LAYERS)), tmp_path / "lora"
    )
    few = {"num_inference_steps": 4, "guidance_scale": 1.0, "height": 16, "width": 16}
    pipeline = load_pipeline(tmp_path / "base", loras=[(file, 1.0)])
    ours = pipeline.generate("a red apple", scheduler="lcm", seed=5, **few).images[0]
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "base", safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = LCMScheduler.from_config(stock.scheduler.config)
    plain = stock("a red apple", generator=image_generators([5]), **few).images[0]
    stock.load_lora_weights(str(file.parent), weight_name=file.name)
    theirs = stock("a red apple", generator=image_generators([5]), **few).images[0]
    ours, theirs, plain = (np.asarray(image, dtype=int) for image in (ours, theirs, plain))
    assert np.abs(ours - theirs).max() <= 1 < np.abs(theirs - plain).max()
