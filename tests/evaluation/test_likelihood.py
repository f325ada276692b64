"""Bits per dimension: exact for Gaussian latents, each part against a computation, the scaling factor."""

import math
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.diffusion.edm import EDMPath, EDMSettings
from ldm.diffusion.flow import FlowPath
from ldm.diffusion.path import DDPMPath, ProbabilityPath, ScheduleSettings
from ldm.diffusion.variational_bound import (
    bound_levels,
    diffusion_term,
    least_noise_term,
    prior_term,
    squared_distance,
)
from ldm.diffusion.ve import VEPath
from ldm.diffusion.vp import VPPath
from ldm.evaluation.likelihood import (
    ImageBound,
    encoder_term,
    image_bounds,
    reconstruction_term,
    summary,
)
from ldm.evaluation.likelihood_plot import binned
from ldm.models.loading.model import save_parts
from ldm.models.unet import UNetDenoiser
from ldm.types import Conditioning, Step
from tests.support.tiny_models import make_sd1
from tests.support.tiny_runs import write_squares

MEAN, SPREAD = 0.3, 0.8
NO_PROMPT = Conditioning(torch.zeros(1, 1, 1))


class Exact:
    """The best network for independent latents x_0 ~ N(MEAN, SPREAD^2)."""

    def __init__(self, path: ProbabilityPath) -> None:
        self.path = path

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        alpha, sigma = self.path.alpha(timesteps), self.path.sigma(timesteps)
        x_t = latents / self.path.scale_model_input(torch.ones_like(alpha), timesteps)
        x_0 = MEAN + alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) * (x_t - alpha * MEAN)
        return self.path.target(x_0, (x_t - alpha * x_0) / sigma, timesteps)


PATHS = {
    "epsilon": DDPMPath(ScheduleSettings()),
    "zero SNR": DDPMPath(ScheduleSettings(rescale_betas_zero_snr=True, prediction_type="v_prediction")),
    "flow": FlowPath(),
    "edm": EDMPath(EDMSettings(sigma_data=0.8)),
    "vp": VPPath(),
    "ve": VEPath(),
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_bound_of_gaussian_latents_is_their_entropy(path: ProbabilityPath) -> None:
    """With the best network the bound is tight."""
    generator = torch.Generator().manual_seed(0)
    latents = MEAN + SPREAD * torch.randn(64, 4, 8, 8, generator=generator)
    levels = bound_levels(path)
    drawn = levels.draw((torch.arange(64) + torch.rand(64, generator=generator)) / 64)

    def distance(timesteps: Tensor) -> Tensor:
        noise = torch.randn(latents.shape, generator=generator)
        return squared_distance(Exact(path), path, timesteps, latents, noise, NO_PROMPT)

    least = least_noise_term(levels, distance(levels.timesteps[:1].expand(64)), latents[0].numel())
    bound = least + diffusion_term(levels, path, drawn, distance(drawn)) + prior_term(path, levels, latents)
    entropy = 0.5 * math.log(2 * math.pi * math.e * SPREAD**2)
    assert float(bound.mean()) / latents[0].numel() == pytest.approx(entropy, abs=0.02)


def test_a_wrong_network_has_a_higher_bound() -> None:
    path, levels = PATHS["epsilon"], bound_levels(PATHS["epsilon"])
    latents, noise = torch.randn(2, 64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    latents, drawn = MEAN + SPREAD * latents, levels.draw(torch.arange(64) / 64)

    def bound(factor: float) -> float:
        def denoiser(
            latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
        ) -> Tensor:
            return factor * Exact(path)(latents, timesteps, conditioning)

        distance = squared_distance(denoiser, path, drawn, latents, noise, NO_PROMPT)
        return float(diffusion_term(levels, path, drawn, distance).mean())

    assert bound(0.5) > 1.005 * bound(1.0) and bound(1.5) > 1.005 * bound(1.0)


def test_the_probabilities_of_8_bit_values_sum_to_one() -> None:
    values = torch.arange(256) / 127.5 - 1
    for mean, deviation in ((0.2, 0.03), (-0.999, 0.5), (1.2, 0.01)):
        logs = [float(reconstruction_term(v.view(1), torch.tensor([mean]), deviation)) for v in values]
        assert sum(math.exp(-each) for each in logs) == pytest.approx(1, abs=1e-6)
        assert all(math.isfinite(each) for each in logs)


def test_a_value_has_the_probability_of_its_interval() -> None:
    law = NormalDist(0.1, 0.05)
    expected = -math.log(law.cdf(0.15 + 1 / 255) - law.cdf(0.15 - 1 / 255))
    found = reconstruction_term(torch.tensor([0.15]).double(), torch.tensor([0.1]).double(), 0.05)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_the_encoders_part_is_minus_its_entropy() -> None:
    moments = torch.cat([torch.randn(1, 2, 3, 3), torch.full((1, 2, 3, 3), math.log(0.04))], dim=1)
    assert float(encoder_term(moments)) == pytest.approx(-18 * 0.5 * math.log(2 * math.pi * math.e * 0.04))


def images(count: int) -> list[tuple[str, str, Tensor]]:
    random = np.random.default_rng(0)
    made = [
        torch.tensor(random.integers(0, 256, (3, 16, 16)) / 127.5 - 1, dtype=torch.float32)
        for _ in range(count)
    ]
    return [(f"{number}.png", "red", each) for number, each in enumerate(made)]


class Shifted(UNetDenoiser):
    """A network for latents of another scale: EDM's input has unit variance anyway, and only the time is another."""

    def __init__(self, unet: Any, shift: float) -> None:
        super().__init__(unet)
        self.shift = shift

    def forward(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        return super().forward(latents, timesteps - self.shift, conditioning)


def test_no_part_depends_on_the_scaling_factor(tmp_path: Path) -> None:
    """The same process at another scale: sigma and sigma_data grow with the latents, the network stays."""
    parts = make_sd1(tmp_path)
    found = []
    for factor in (1.0, 2.0):
        parts.autoencoder.vae.register_to_config(scaling_factor=0.5 * factor)
        settings = EDMSettings(sigma_data=factor, log_mean=-1.2 + math.log(factor))
        path = EDMPath(settings)
        denoiser = Shifted(parts.denoiser.unet, math.log(factor) / 4)
        (bound,), _ = image_bounds(replace(parts, denoiser=denoiser), path, images(1), num_levels=4)
        found.append(bound)
    one, two = found
    for name in ("reconstruction", "encoder", "latents", "total"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-4), name


def test_the_interval_is_that_of_the_mean_and_a_single_image_has_none() -> None:
    bounds = [ImageBound(1.0, 2.0, 3.0), ImageBound(2.0, 2.0, 3.0), ImageBound(3.0, 2.0, 3.0)]
    total = summary(bounds)["total"]
    assert total["mean"] == 7.0 and total["low"] == pytest.approx(7 - 1.96 / 3**0.5, abs=1e-3)
    assert summary(bounds[:1])["total"] == {"mean": 6.0, "low": None, "high": None}


def test_the_parts_of_the_path_add_up_to_the_bound() -> None:
    bounds = [ImageBound(0, 0, 0, ((0.01, 4.0), (0.97, 1.0))), ImageBound(0, 0, 0, ((0.04, 2.0), (1.0, 1.0)))]
    mean, error = binned(bounds)
    assert (mean[0], mean[-1], mean[1:-1].sum()) == (3.0, 1.0, 0.0)
    assert error[0] == pytest.approx(1.0) and error[-1] == 0


def test_the_command_measures_a_folder(tmp_path: Path) -> None:
    save_parts(make_sd1(tmp_path / "tokenizer"), tmp_path / "model")
    data = write_squares(tmp_path / "data")
    Path(data / "red.png").write_bytes(b"no image")
    plot = tmp_path / "terms.png"
    arguments = [
        "likelihood",
        str(tmp_path / "model"),
        "--data",
        str(data),
        "--num-images",
        "3",
        "--num-levels",
        "2",
    ]
    done = CliRunner().invoke(
        app, [*arguments, "--plot", str(plot), "--device", "cpu"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert "red.png is left out" in done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()[:4]] == [
        "total", "reconstruction", "encoder", "latents",
    ]  # fmt: skip
    with Image.open(plot) as drawn:
        assert drawn.size[0] > 500
    other = CliRunner().invoke(app, [*arguments, "--plot", str(data / "blue.png")])
    assert other.exit_code == 2 and "exists already" in other.stderr


def test_the_bound_of_an_image_depends_on_no_other(tmp_path: Path) -> None:
    """The order of the images makes no difference."""
    parts, path = make_sd1(tmp_path), PATHS["epsilon"]
    given = images(2)
    forward, _ = image_bounds(parts, path, given, num_levels=2)
    backward, _ = image_bounds(parts, path, given[::-1], num_levels=2)
    assert forward == backward[::-1]
