"""How far two sets of features overlap: precision and recall, density and coverage, with nearest neighbours.

The neighbourhood of a feature is the ball that reaches to its k-th nearest neighbour in its own set. Each number is a
mean over the images of one set while the other set is held fixed, and its interval says how it would vary with further
images of the first set. It does not say how it would vary with another second set.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.evaluation.intervals import Estimate, finite, mean_interval
from ldm.evaluation.metrics import exact_interval

NUM_NEIGHBOURS = 5
"""k, as in Naeem et al. 2020."""
BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Overlap:
    """How far the generated images and the reference overlap.

    Attributes:
        precision: the share of generated images that lie in the neighbourhood of a reference image.
        recall: the share of reference images that lie in the neighbourhood of a generated image (Kynkaanniemi et
            al., "Improved Precision and Recall Metric", 2019, eq. 1 and 2).
        density: in how many neighbourhoods of reference images a generated image lies, divided by k; 1 is expected
            for equal distributions (Naeem et al., "Reliable Fidelity and Diversity Metrics", 2020, eq. 3).
        coverage: the share of reference images whose neighbourhood holds a generated image (eq. 4).
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def overlap(generated: Tensor, reference: Tensor, k: int = NUM_NEIGHBOURS) -> Overlap:
    """Compare features [N, d] and [M, d], of more than k each."""
    generated, reference = finite(generated), finite(reference)
    near_reference = in_neighbourhoods(generated, reference, k)
    near_generated = in_neighbourhoods(reference, generated, k)
    return Overlap(
        precision=_share(near_reference.counts > 0),
        recall=_share(near_generated.counts > 0),
        density=mean_interval(near_reference.counts.double() / k),
        coverage=_share(near_reference.is_hit),
    )


@dataclass(frozen=True)
class Hits:
    """Which points lie in which neighbourhoods.

    Attributes:
        counts: [N] in how many neighbourhoods each point lies.
        is_hit: [M] whether a point lies in each neighbourhood.
    """

    counts: Tensor
    is_hit: Tensor


def in_neighbourhoods(points: Tensor, centres: Tensor, k: int) -> Hits:
    """Which points [N, d] lie in the neighbourhoods of centres [M, d], among which those neighbourhoods are found."""
    radii = neighbour_distances(centres, k)
    counts, is_hit = [], torch.zeros(len(centres), dtype=torch.bool)
    for start in range(0, len(points), BLOCK_ROWS):
        inside = _distances(points[start : start + BLOCK_ROWS], centres) <= radii[None]
        counts.append(inside.sum(dim=1))
        is_hit |= inside.any(dim=0)
    return Hits(torch.cat(counts), is_hit)


def neighbour_distances(features: Tensor, k: int) -> Tensor:
    """[N] the distance of each feature to its k-th nearest neighbour among the others."""
    if len(features) <= k:
        raise ValueError(f"{len(features)} features have no {k} neighbours each")
    found = []
    for start in range(0, len(features), BLOCK_ROWS):
        distances = _distances(features[start : start + BLOCK_ROWS], features)
        rows = torch.arange(len(distances))
        distances[rows, start + rows] = torch.inf  # not its own neighbour
        found.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(found)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Without the shortcut by dot products, whose rounding is large for near duplicates."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _share(is_right: Tensor) -> Estimate:
    num_right, total = int(is_right.sum()), len(is_right)
    return Estimate(num_right / total, *exact_interval(num_right, total))
