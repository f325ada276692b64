"""A1111's prompt weights depend on the other prompts of the batch: it restores the mean of all of them together.

A1111 is no package and cannot be imported. The first half runs its formula (`EmphasisOriginal` in
modules/sd_emphasis.py) on random embeddings, not its code.
"""

import torch
from torch import Tensor

from ldm.models.prompt_weights import scale_keeping_mean

Z = torch.randn(2, 1, 77, 16, generator=torch.Generator().manual_seed(0)) + 0.1
WEIGHTS = torch.ones(2, 1, 77)
WEIGHTS[0, 0, 1:4] = 1.5
WEIGHTS[1, 0, 1:40] = 0.3


def theirs(z: Tensor, weights: Tensor) -> Tensor:
    scaled = z * weights[..., None]
    return scaled * (z.mean() / scaled.mean())


def error_beside_another(rule: object) -> float:
    """The largest relative change of the first prompt's embedding when the second is in its batch."""
    assert callable(rule)
    together, alone = rule(Z, WEIGHTS)[0], rule(Z[:1], WEIGHTS[:1])[0]
    return float((together - alone).abs().max() / alone.abs().max())


def test_theirs_depends_on_the_batch_and_ours_does_not() -> None:
    assert error_beside_another(theirs) > 0.1
    assert error_beside_another(scale_keeping_mean) == 0
    torch.testing.assert_close(
        scale_keeping_mean(Z[:1], WEIGHTS[:1]), theirs(Z[:1], WEIGHTS[:1])
    )  # alone: equal
