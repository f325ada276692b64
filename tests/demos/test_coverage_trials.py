"""The true values that the trials of coverage compare with, against their definitions."""

import torch

from ldm.demos.coverage_trials import is_covered, num_holding
from ldm.evaluation.neighbours import in_neighbourhoods, neighbour_distances

K = 3


def test_points_in_balls_are_counted_as_the_metrics_count_them() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(1200, 4, generator=generator, dtype=torch.float64)  # more than a block
    x, y = points[:30] + 0.5, torch.randn(40, 4, generator=generator, dtype=torch.float64)
    expected = in_neighbourhoods(points, y, K).counts
    assert torch.equal(num_holding(points, y, neighbour_distances(y, K)), expected)
    assert 0.2 < float((expected > 0).double().mean()) < 0.98

    radii = torch.cdist(points, y).sort(dim=1).values[:, K - 1]
    held = torch.cdist(points, x).min(dim=1).values <= radii
    assert torch.equal(is_covered(points, x, y, K), held)
    assert 0.2 < float(held.double().mean()) < 0.98
