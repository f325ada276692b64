"""diffusers' depth-to-image pipeline divides the range of a constant depth map by zero: all of it becomes NaN."""

from types import SimpleNamespace

import torch
from diffusers import StableDiffusionDepth2ImgPipeline

from ldm.tasks.depth import full_range, latent_map

FLAT = torch.full((1, 16, 16), 0.5)


def test_theirs_is_nan_and_ours_is_the_middle() -> None:
    pipeline = SimpleNamespace(vae_scale_factor=2)
    theirs = StableDiffusionDepth2ImgPipeline.prepare_depth_map(
        pipeline, torch.zeros(1, 3, 16, 16), FLAT, 1, False, torch.float32, torch.device("cpu")
    )
    assert theirs.isnan().all()
    ours = full_range(latent_map(FLAT.expand(1, 3, 16, 16), 2))
    assert torch.equal(ours, torch.zeros(1, 1, 8, 8))
    ramp = torch.linspace(0.2, 0.4, 16).expand(1, 3, 16, 16)
    assert full_range(latent_map(ramp, 2)).aminmax() == (-1, 1)
