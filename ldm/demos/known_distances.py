"""Distributions whose distances are known exactly, to see whether the intervals of `ldm evaluate` hold them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ldm.demos.shapes import Scene, scene_for
from ldm.demos.shapes_drawing import draw
from ldm.evaluation.frechet import Moments, frechet_of_moments
from ldm.evaluation.kernel_distance import gaussian_kernel
from ldm.io.images import image_to_tensor

NUM_SCENES = 400


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians, with weights [K], means [K, d] and covariances [K, d, d]. Points have covariance 0."""

    weights: Tensor
    means: Tensor
    roots: Tensor

    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        """[number, d]."""
        component = torch.multinomial(self.weights, number, replacement=True, generator=generator)
        if not self.roots.any():
            return self.means[component]
        noise = torch.randn(number, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[component] + torch.einsum("nij,nj->ni", self.roots[component], noise)

    @property
    def covariances(self) -> Tensor:
        return self.roots @ self.roots.transpose(1, 2)

    def moments(self) -> Moments:
        """Of the whole mixture."""
        mean = self.weights @ self.means
        apart = self.means - mean
        within = torch.einsum("k,kij->ij", self.weights, self.covariances)
        return Moments(mean, within + torch.einsum("k,ki,kj->ij", self.weights, apart, apart))

    def second_moment(self) -> Tensor:
        """E xx', [d, d]."""
        found = self.moments()
        return found.covariance + torch.outer(found.mean, found.mean)

    def third_moment(self) -> Tensor:
        """E x x x, [d, d, d]."""
        total = torch.zeros((self.means.shape[1],) * 3, dtype=torch.float64)
        for weight, mean, cov in zip(self.weights, self.means, self.covariances, strict=True):
            total += weight * torch.einsum("i,j,k->ijk", mean, mean, mean)
            for axes in ("ij,k->ijk", "ik,j->ijk", "jk,i->ijk"):
                total += weight * torch.einsum(axes, cov, mean)
        return total


def true_distance(name: str, p: Mixture, q: Mixture) -> float:
    """The exact squared MMD or Frechet distance."""
    if name == "fid":
        return frechet_of_moments(p.moments(), q.moments())
    second = (p.second_moment() - q.second_moment()).square().sum()
    if name == "second_moment":
        return float(second)
    if name == "kid":
        d = p.means.shape[1]
        first = (p.moments().mean - q.moments().mean).square().sum()
        third = (p.third_moment() - q.third_moment()).square().sum()
        return float(3 * first / d + 3 * second / d**2 + third / d**3)
    return gaussian_mean(p, p) + gaussian_mean(q, q) - 2 * gaussian_mean(p, q)


def gaussian_mean(p: Mixture, q: Mixture, sigma: float = 10.0) -> float:
    """E exp(-|x - y|^2 / 2 sigma^2) in closed form."""
    if not (p.roots.any() or q.roots.any()):
        return float(p.weights @ gaussian_kernel(p.means, q.means, sigma) @ q.weights)
    eye, total = torch.eye(p.means.shape[1], dtype=torch.float64) * sigma**2, 0.0
    for weight_p, mean_p, cov_p in zip(p.weights, p.means, p.covariances, strict=True):
        for weight_q, mean_q, cov_q in zip(q.weights, q.means, q.covariances, strict=True):
            spread, apart = eye + cov_p + cov_q, mean_p - mean_q
            exponent = -0.5 * float(apart @ torch.linalg.solve(spread, apart))
            volume = float(torch.linalg.det(spread / sigma**2)) ** -0.5
            total += float(weight_p * weight_q) * volume * math.exp(exponent)
    return total


def gaussian(shift: float = 0.0, scale: float = 1.0, dim: int = 8) -> Mixture:
    """One Gaussian whose standard deviations fall as 1/sqrt(rank), as those of features do."""
    deviations = torch.arange(1, dim + 1, dtype=torch.float64) ** -0.5 * scale
    mean = torch.zeros(1, dim, dtype=torch.float64)
    mean[0, 0] = shift
    return Mixture(torch.ones(1, dtype=torch.float64), mean, torch.diag(deviations)[None])


def three_modes(weights: Sequence[float], dim: int = 8) -> Mixture:
    """Three round Gaussians, two standard deviations and more apart."""
    means = torch.zeros(3, dim, dtype=torch.float64)
    means[0, 0], means[1, 1], means[2, 2] = 2.0, 2.0, -2.0
    roots = torch.eye(dim, dtype=torch.float64).repeat(3, 1, 1) * 0.7
    return Mixture(torch.tensor(weights, dtype=torch.float64), means, roots)


def shapes(weight_of: Callable[[Scene], float], dim: int = 12) -> Mixture:
    """400 drawn scenes as points: colours on a grid of 4 x 4, in the `dim` directions with most variance."""
    scenes = [scene_for(0, index) for index in range(NUM_SCENES)]
    drawn = [draw(scene, 32, "coverage", index) for index, scene in enumerate(scenes)]
    pixels = torch.stack([image_to_tensor(image) for image in drawn]).double()
    features = torch.nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(1)
    directions = torch.linalg.svd(features - features.mean(dim=0), full_matrices=False).Vh[:dim]
    points = features @ directions.T
    weights = torch.tensor([weight_of(scene) for scene in scenes], dtype=torch.float64)
    return Mixture(weights / weights.sum(), points, torch.zeros(len(points), dim, dim, dtype=torch.float64))


def by_count(factor: float) -> Callable[[Scene], float]:
    """Scenes with more than one thing are drawn `factor` times as often."""
    return lambda scene: factor if len(scene.things) > 1 else 1.0


@cache
def cases() -> dict[str, tuple[Mixture, Mixture]]:
    """Pairs of distributions, by name."""
    even = three_modes((1 / 3, 1 / 3, 1 / 3))
    return {
        "Gaussian, equal": (gaussian(), gaussian()),
        "Gaussian, shifted by 0.5": (gaussian(), gaussian(shift=0.5)),
        "Gaussian, 1.3 times as wide": (gaussian(), gaussian(scale=1.3)),
        "mixture, equal": (even, even),
        "mixture, a mode half lost": (even, three_modes((0.4, 0.4, 0.2))),
        "shapes, equal": (shapes(by_count(1)), shapes(by_count(1))),
        "shapes, fewer with several things": (shapes(by_count(1)), shapes(by_count(0.5))),
    }
